// One strip of the flood, for a register of many maps (flood.hpp) or for a single map (stats.cuh).
//
// A sweep goes over the strips once, down or up. Where nothing is flooded, a lane starts with one
// run that is left over; its region grows from strip to strip until nothing of it reaches the next.
// If no cell of it had a neighbour against the direction of the sweep, it is complete: its area is
// noted, and the lane starts another region in the same strip. Else it stays open and the next
// sweep, in the other direction, goes on with it.
//
// Filling whole runs is two additions: in runs + seeds a carry ripples from each seed to the upper
// end of its run, and the same in reversed bits fills to the lower end.
#pragma once

#include "anywhere.hpp"

namespace fastground {
namespace {

// What a sweep carries from strip to strip. `Lanes` says what a register V of unsigned words is,
// one word a map, and how its bits are reversed and counted.
template <class Lanes>
struct FloodStep {
  using V = typename Lanes::V;

  V flooded{};  // of the last strip's far row
  V dry{};      // and the rest of that row
  V contact{};  // not 0: the region has a neighbour behind
  V waiting{};  // not 0: the open region is still ahead
  V area{};     // plus the owner
  V start{};    // the strip in which the region was started
  V left{};

  // `owner` is added to all areas; the open region lies in the first `open_until` strips.
  FASTGROUND_ANYWHERE void begin(V owner, V open_until) {
    *this = FloodStep{};
    waiting = open_until;
    area = owner;
  }

  // Floods the strip number `here` in the direction of the sweep. Calls note(quiet, area) where
  // lanes in which `quiet` is 0 have completed a region, if the area is not just the owner.
  template <bool Down, class Strip, class Note>
  FASTGROUND_ANYWHERE void advance(Strip& strip, V here, V owner, V open_until, Note&& note) {
    const V near = Down ? strip.top : strip.bottom;
    const V far = Down ? strip.bottom : strip.top;

    const V open = here < open_until ? strip.flooded : V{};
    const V reached = (widened(flooded) & near) | open;
    waiting = reached == 0 ? waiting : V{};

    // Where nothing is open, the last region is complete and another is started.
    const V quiet = reached | contact | waiting;
    note(quiet, area);
    area = quiet == 0 ? owner : area;
    start = quiet == 0 ? here : start;
    const V seed = quiet == 0 ? strip.left & -strip.left : V{};

    const V runs = whole_runs(strip, reached | seed);
    strip.flooded = runs;
    strip.left &= ~runs;
    left |= strip.left;

    const V flooded_near = runs & near;
    contact |= widened(flooded_near) & dry;
    flooded = runs & far;
    dry = far & ~runs;
    area += Lanes::popcount(flooded_near) + Lanes::popcount(flooded);
  }

  // After the last of so many strips: where the region that stays open lies for the next sweep.
  FASTGROUND_ANYWHERE V open_until(V strips) const { return contact == 0 ? V{} : strips - start; }

 private:
  FASTGROUND_ANYWHERE static V widened(V x) { return x | x << 1 | x >> 1; }

  template <class Strip>
  FASTGROUND_ANYWHERE static V whole_runs(const Strip& strip, V seeds) {
    const V up = strip.both() & ~(strip.both() + seeds);
    const V down = strip.mirrored() & ~(strip.mirrored() + Lanes::reversed(seeds));
    return seeds | up | Lanes::reversed(down);
  }
};

}  // namespace
}  // namespace fastground
