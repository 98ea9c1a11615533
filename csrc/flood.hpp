// The areas of the 8-connected regions of many binary maps at once: one map a SIMD lane.
//
// Published labellers walk over one image, and pay a mispredicted branch for each run or block of
// cells. Here a register holds the same row of several maps (16, with AVX-512 and 32 columns), a
// word of bits for each, and nothing branches on what the maps show. Rows are taken in pairs,
// strips: in the OR of two neighbouring rows every run of set bits is one connected piece, so a
// flood never stops inside a run.
//
//     strip k-1   top     . # # . . . #
//                 bottom  . . . # . . .  --+  what is flooded here ...
//     strip k     top     . . . . # . .  <-+  ... floods its neighbours here,
//                 bottom  # # . . # # .       and then whole runs of top | bottom.
//
// A sweep goes over the strips once, down or up. Where nothing is flooded, a lane starts with one
// run that is left over; its region grows from strip to strip until nothing of it reaches the next.
// If no cell of it had a neighbour against the direction of the sweep, it is complete: its area is
// noted, and the lane starts another region in the same strip. Else it stays open and the next
// sweep, in the other direction, goes on with it. A lane that has no cells left takes the next map.
//
// Filling whole runs is two additions: in runs + seeds a carry ripples from each seed to the upper
// end of its run, and the same in reversed bits fills to the lower end.
#pragma once

#include "fixed_point.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace fastground {
namespace {

template <class Word>
class Flood {
 public:
  Flood(Scratch& scratch, int grid_h, int columns)
      : strips_((grid_h + 1) / 2),
        columns_(columns),
        rows_(scratch.take<Word>(2 * strips_ * columns)),
        closed_(scratch.take<Word>(groups * lanes<Word> * (strips_ + 2))) {
    for (Group& group : group_) group.strips = scratch.take<Strip>(strips_);
    if (rows_ != nullptr && grid_h % 2 != 0) {
      for (int m = 0; m < columns; ++m) row(grid_h)[m] = 0;
    }
  }

  // Bits of row i of each map, one word a map.
  Word* row(int i) { return rows_ + i * columns_; }

  // Adds to sums[m] the n ln n of each region of map m, for the first `count` columns.
  void run(int count, std::uint64_t* sums) {
    next_ = 0;
    count_ = count;
    for (Group& group : group_) {
      group.idle = ~std::uint64_t{0} >> (64 - lanes<Word>);
      for (int k = 0; k < strips_; ++k) group.strips[k] = Strip{};
      group.owner = group.open_until = V{};
      refill(group);
    }
    while (busy()) {
      sweep<true>(sums);
      sweep<false>(sums);
    }
  }

 private:
  using V = Vec<Word>;
  static constexpr int groups = 2;  // each hides the latency of the other
  static constexpr int owner_shift = sizeof(Word) == 4 ? 16 : 32;  // a note is owner and area

  struct Strip {
    V top, bottom;
    V both;      // the runs
    V mirrored;  // the runs, bits reversed
    V left;      // runs of no region yet
    V flooded;   // runs of the open region, or of regions closed in the last sweep
  };

  // What one group of lanes carries from sweep to sweep.
  struct Group {
    Strip* strips;
    V owner;             // which map, where notes keep it
    V open_until;        // the open region lies in the first so many strips of the next sweep
    std::uint64_t idle;  // lanes without a map
  };

  // What it carries from strip to strip.
  struct State {
    V flooded;  // of the last strip's far row
    V dry;      // and the rest of that row
    V contact;  // not 0: the region has a neighbour behind
    V waiting;  // not 0: the open region is still ahead
    V area;     // plus owner, as notes keep them
    V start;    // the strip in which the region was started
    V left;
  };

  static V widened(V x) { return x | x << 1 | x >> 1; }

  static V whole_runs(const Strip& strip, V seeds) {
    const V up = strip.both & ~(strip.both + seeds);
    const V down = strip.mirrored & ~(strip.mirrored + reversed<Word>(seeds));
    return seeds | up | reversed<Word>(down);
  }

  bool busy() const {
    std::uint64_t idle = ~std::uint64_t{0};
    for (const Group& group : group_) idle &= group.idle;
    return idle != ~std::uint64_t{0} >> (64 - lanes<Word>);
  }

  template <bool Down>
  void sweep(std::uint64_t* sums) {
    State state[groups];
    for (int g = 0; g < groups; ++g) {
      state[g] = State{};
      state[g].waiting = group_[g].open_until;
      state[g].area = group_[g].owner;
    }
    Word* closed = closed_;
    for (int step = 0; step < strips_; ++step) {
      const int k = Down ? step : strips_ - 1 - step;
#pragma GCC unroll 2
      for (int g = 0; g < groups; ++g) {
        closed = advance<Down>(group_[g], group_[g].strips[k], step, state[g], closed);
      }
    }
    for (int g = 0; g < groups; ++g) closed = finish(group_[g], state[g], closed);
    for (const Word* note = closed_; note != closed; ++note) {
      const auto area = static_cast<int>(*note & ((Word{1} << owner_shift) - 1));
      sums[*note >> owner_shift] += n_ln_n_table[area];
    }
    for (Group& group : group_) refill(group);
  }

  // One strip of one group.
  template <bool Down>
  static Word* advance(const Group& group, Strip& strip, int step, State& state, Word* closed) {
    const V near = Down ? strip.top : strip.bottom;
    const V far = Down ? strip.bottom : strip.top;
    const V here = broadcast(static_cast<Word>(step));

    const V open = here < group.open_until ? strip.flooded : V{};
    const V reached = (widened(state.flooded) & near) | open;
    state.waiting = reached == 0 ? state.waiting : V{};

    // Where nothing is open, the last region is complete and another is started.
    const V quiet = reached | state.contact | state.waiting;
    closed = note(quiet, group.owner, state.area, closed);
    state.area = quiet == 0 ? group.owner : state.area;
    state.start = quiet == 0 ? here : state.start;
    const V seed = quiet == 0 ? strip.left & -strip.left : V{};

    const V flooded = whole_runs(strip, reached | seed);
    strip.flooded = flooded;
    strip.left &= ~flooded;
    state.left |= strip.left;

    const V flooded_near = flooded & near;
    state.contact |= widened(flooded_near) & state.dry;
    state.flooded = flooded & far;
    state.dry = far & ~flooded;
    state.area += popcount<Word>(flooded_near) + popcount<Word>(state.flooded);
    return closed;
  }

  // Notes the areas of lanes that are quiet (0) and have one.
  static Word* note(V quiet, V owner, V area, Word* closed) {
    return append<Word>(closed, zero_bits<Word>(quiet) & ~zero_bits<Word>(area ^ owner), area);
  }

  // After the last strip: regions without contact are complete, others stay open.
  Word* finish(Group& group, const State& state, Word* closed) {
    closed = note(state.contact, group.owner, state.area, closed);
    const V strips = broadcast(static_cast<Word>(strips_));
    group.open_until = state.contact == 0 ? V{} : strips - state.start;
    group.idle |= zero_bits<Word>(state.contact | state.left);
    return closed;
  }

  // Gives the next maps to the idle lanes, once they are worth it.
  void refill(Group& group) {
    std::uint64_t given = group.idle;
    int size = __builtin_popcountll(given);
    if (next_ == count_ || 4 * size < lanes<Word>) return;
    for (; size > count_ - next_; --size) given &= given - 1;
    group.idle ^= given;
    const V mask = lanes_of<Word>(given);
    const V number = numbered<Word>(given);
    group.owner = mask != 0 ? (number + static_cast<Word>(next_)) << owner_shift : group.owner;
    for (int k = 0; k < strips_; ++k) {
      Strip& strip = group.strips[k];
      const V top = permuted<Word>(load(row(2 * k) + next_), number);
      const V bottom = permuted<Word>(load(row(2 * k + 1) + next_), number);
      strip.top = mask != 0 ? top : strip.top;
      strip.bottom = mask != 0 ? bottom : strip.bottom;
      strip.both = strip.top | strip.bottom;
      strip.mirrored = reversed<Word>(strip.both);
      strip.left = mask != 0 ? top | bottom : strip.left;
    }
    next_ += size;
  }

  int strips_;
  int columns_;
  int count_ = 0;
  int next_ = 0;  // the first map that no lane has taken
  Word* rows_;
  Word* closed_;
  Group group_[groups];
};

}  // namespace
}  // namespace fastground
