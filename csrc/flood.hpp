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
// How one strip is flooded, flood_step.hpp says. A lane that has no cells left takes the next map.
#pragma once

#include "fixed_point.hpp"
#include "flood_step.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace fastground {
namespace {

template <class Word>
struct LanesOf {
  using V = Vec<Word>;
  static V reversed(V x) { return fastground::reversed<Word>(x); }
  static V popcount(V x) { return fastground::popcount<Word>(x); }
};

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
  using Step = FloodStep<LanesOf<Word>>;
  static constexpr int groups = 2;  // each hides the latency of the other
  static constexpr int owner_shift = sizeof(Word) == 4 ? 16 : 32;  // a note is owner and area

  struct Strip {
    V top, bottom;
    V runs;
    V mirrored_runs;
    V left;     // runs of no region yet
    V flooded;  // runs of the open region, or of regions closed in the last sweep

    V both() const { return runs; }
    V mirrored() const { return mirrored_runs; }
  };

  // What one group of lanes carries from sweep to sweep.
  struct Group {
    Strip* strips;
    V owner;             // which map, where notes keep it
    V open_until;        // the open region lies in the first so many strips of the next sweep
    std::uint64_t idle;  // lanes without a map
  };

  bool busy() const {
    std::uint64_t idle = ~std::uint64_t{0};
    for (const Group& group : group_) idle &= group.idle;
    return idle != ~std::uint64_t{0} >> (64 - lanes<Word>);
  }

  template <bool Down>
  void sweep(std::uint64_t* sums) {
    Step step[groups];
    for (int g = 0; g < groups; ++g) step[g].begin(group_[g].owner, group_[g].open_until);
    Word* closed = closed_;
    for (int i = 0; i < strips_; ++i) {
      const int k = Down ? i : strips_ - 1 - i;
      const V here = broadcast(static_cast<Word>(i));
#pragma GCC unroll 2
      for (int g = 0; g < groups; ++g) {
        const Group& group = group_[g];
        step[g].template advance<Down>(
            group.strips[k], here, group.owner, group.open_until,
            [&](V quiet, V area) { closed = note(quiet, group.owner, area, closed); });
      }
    }
    for (int g = 0; g < groups; ++g) closed = finish(group_[g], step[g], closed);
    for (const Word* note = closed_; note != closed; ++note) {
      const auto area = static_cast<int>(*note & ((Word{1} << owner_shift) - 1));
      sums[*note >> owner_shift] += n_ln_n_table[area];
    }
    for (Group& group : group_) refill(group);
  }

  // Notes the areas of lanes that are quiet (0) and have one.
  static Word* note(V quiet, V owner, V area, Word* closed) {
    return append<Word>(closed, zero_bits<Word>(quiet) & ~zero_bits<Word>(area ^ owner), area);
  }

  // After the last strip: regions without contact are complete, others stay open.
  Word* finish(Group& group, const Step& step, Word* closed) {
    closed = note(step.contact, group.owner, step.area, closed);
    group.open_until = step.open_until(broadcast(static_cast<Word>(strips_)));
    group.idle |= zero_bits<Word>(step.contact | step.left);
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
      strip.runs = strip.top | strip.bottom;
      strip.mirrored_runs = reversed<Word>(strip.runs);
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
