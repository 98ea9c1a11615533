// The 8-connected regions of one binary grid.
//
// A row is a bit mask. Rows are taken in pairs (strips), because a run of set bits in the OR of
// two neighbouring rows is always one 8-connected piece:
//
//     upper   . # # . . . #        OR   . # # # . . #     two runs: [1, 4) and [6, 7)
//     lower   . . . # . . .
//
// So half the rows and fewer runs remain. A run touches a run of the strip above where its upper
// row meets the lower row of that run, widened by one column to both sides. Touching runs are
// united in a union-find forest whose root is a region's first run.
//
// Source: the idea of runs of OR-ed row pairs, "BMRS": Lee, Bolelli, Allegretti, Grana, 2021.
#pragma once

#include "cells.hpp"

namespace fastground {
namespace {

// A row of 64 * Words columns, the first in the lowest bit.
template <int Words>
struct Bits {
  std::uint64_t word[Words] = {};

  static Bits read(const std::uint64_t* from) {
    Bits bits;
    for (int w = 0; w < Words; ++w) bits.word[w] = from[w];
    return bits;
  }
  void write(std::uint64_t* to) const {
    for (int w = 0; w < Words; ++w) to[w] = word[w];
  }
  friend Bits operator&(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] &= b.word[w];
    return a;
  }
  friend Bits operator|(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] |= b.word[w];
    return a;
  }
  // This without what `b` holds.
  Bits without(const Bits& b) const {
    Bits result;
    for (int w = 0; w < Words; ++w) result.word[w] = word[w] & ~b.word[w];
    return result;
  }
  bool any() const {
    std::uint64_t all = 0;
    for (const std::uint64_t w : word) all |= w;
    return all != 0;
  }
  int count() const {
    int total = 0;
    for (const std::uint64_t w : word) total += __builtin_popcountll(w);
    return total;
  }
  int first() const {
    int w = 0;
    while (word[w] == 0) ++w;
    return 64 * w + __builtin_ctzll(word[w]);
  }
  // Each bit and its neighbours left and right.
  Bits widened() const {
    Bits result;
    for (int w = 0; w < Words; ++w) {
      std::uint64_t wide = word[w] | word[w] << 1 | word[w] >> 1;
      if (w > 0) wide |= word[w - 1] >> 63;
      if (w + 1 < Words) wide |= word[w + 1] << 63;
      result.word[w] = wide;
    }
    return result;
  }
  // The lowest run of set bits: adding its lowest bit ripples a carry through the run and out.
  Bits lowest_run() const {
    Bits result;
    bool carry = false;
    bool started = false;
    for (int w = 0; w < Words; ++w) {
      std::uint64_t add = carry ? 1 : 0;
      if (!started && word[w] != 0) {
        add = word[w] & (~word[w] + 1);
        started = true;
      }
      const std::uint64_t sum = word[w] + add;
      carry = sum < word[w];
      result.word[w] = word[w] & ~sum;
    }
    return result;
  }
};

// Working memory for grids of one size; made once, used for every map.
class Components {
 public:
  Components(Scratch& scratch, int grid_h, int grid_w);

  // Finds the regions of a bit stream; returns how many.
  int find(const std::uint64_t* stream);

  // The number of cells of each region found, in no fixed order.
  const std::int32_t* areas() const { return areas_; }

  // Adds to masses[region], in the order of areas(), its cells' excess over `base`, at least 0.
  template <class T>
  void add_excess(const T* cells, double base, double* masses) const;

  // Writes 1, 2, ... into the cells of each region in raster order of its first cell, else 0.
  void write_labels(std::int32_t* labels);

 private:
  struct Run {
    int strip;
    int start;  // columns [start, end)
    int end;
    int parent;  // a run of the same region, not after this one
    int region;
  };

  template <int Words>
  void connect();
  int root(int run);
  void unite(int a, int b);
  template <class F>
  void for_each_cell(const Run& run, int run_index, int row, F&& f) const;

  int grid_h_;
  int grid_w_;
  int words_;             // 64-bit words a row: 1 or 4
  std::uint64_t* rows_;   // bits of each row, an even number of rows
  std::uint64_t* masks_;  // bits of each run
  Run* runs_;
  int num_runs_ = 0;
  int num_regions_ = 0;
  std::int32_t* areas_;
  std::int32_t* numbers_;
};

Components::Components(Scratch& scratch, int grid_h, int grid_w)
    : grid_h_(grid_h), grid_w_(grid_w), words_(grid_w <= 64 ? 1 : 4) {
  const int strips = (grid_h + 1) / 2;
  const int most_runs = strips * ((grid_w + 1) / 2);
  rows_ = scratch.take<std::uint64_t>(2 * strips * words_);
  masks_ = scratch.take<std::uint64_t>(most_runs * words_);
  runs_ = scratch.take<Run>(most_runs);
  areas_ = scratch.take<std::int32_t>(most_runs);
  numbers_ = scratch.take<std::int32_t>(most_runs);
}

int Components::find(const std::uint64_t* stream) {
  if (words_ == 1) {
    rows_[(grid_h_ + 1) / 2 * 2 - 1] = 0;
    for_each_row(stream, grid_h_, grid_w_, [&](int i, std::uint64_t bits) { rows_[i] = bits; });
    connect<1>();
    return num_regions_;
  }
  for (int i = 0; i < (grid_h_ + 1) / 2 * 2; ++i) {
    for (int w = 0; w < 4; ++w) {
      const int columns = grid_w_ - 64 * w;
      const int at = i * grid_w_ + 64 * w;
      std::uint64_t bits = 0;
      if (i < grid_h_ && columns > 0) {
        bits = stream[at / 64] >> (at % 64) | stream[at / 64 + 1] << 1 << (63 - at % 64);
        if (columns < 64) bits &= ~(~std::uint64_t{0} << columns);
      }
      rows_[i * 4 + w] = bits;
    }
  }
  connect<4>();
  return num_regions_;
}

template <int Words>
void Components::connect() {
  using Row = Bits<Words>;
  num_regions_ = 0;
  int count = 0;
  int above = 0;  // the runs of the strip above are [above, here)
  for (int strip = 0; 2 * strip < grid_h_; ++strip) {
    const int here = count;
    const Row upper = Row::read(&rows_[2 * strip * Words]);
    const Row lower = Row::read(&rows_[(2 * strip + 1) * Words]);
    const Row contact = strip == 0 ? Row{} : Row::read(&rows_[(2 * strip - 1) * Words]);
    int candidate = above;
    for (Row rest = upper | lower; rest.any();) {
      const Row mask = rest.lowest_run();
      const int start = mask.first();
      const int end = start + mask.count();
      const int index = count++;
      rest = rest.without(mask);
      runs_[index] = {strip, start, end, index, 0};
      mask.write(&masks_[index * Words]);
      while (candidate < here && runs_[candidate].end < start) ++candidate;
      for (int other = candidate; other < here && runs_[other].start <= end; ++other) {
        const Row touching = (contact & Row::read(&masks_[other * Words])).widened();
        if ((touching & mask & upper).any()) unite(other, index);
      }
    }
    above = here;
  }
  num_runs_ = count;
  for (int index = 0; index < count; ++index) {
    Run& run = runs_[index];
    if (run.parent == index) {
      run.region = num_regions_;
      areas_[num_regions_++] = 0;
    } else {
      run.region = runs_[run.parent].region;  // the parent comes earlier
    }
    const Row mask = Row::read(&masks_[index * Words]);
    const Row upper = Row::read(&rows_[2 * run.strip * Words]);
    const Row lower = Row::read(&rows_[(2 * run.strip + 1) * Words]);
    areas_[run.region] += (mask & upper).count() + (mask & lower).count();
  }
}

int Components::root(int run) {
  while (runs_[run].parent != run) {
    runs_[run].parent = runs_[runs_[run].parent].parent;
    run = runs_[run].parent;
  }
  return run;
}

void Components::unite(int a, int b) {
  a = root(a);
  b = root(b);
  runs_[a < b ? b : a].parent = a < b ? a : b;
}

// Calls f(cell) for the cells of a run in one of its two rows, from left to right.
template <class F>
void Components::for_each_cell(const Run& run, int run_index, int row, F&& f) const {
  for (int w = run.start / 64; w <= (run.end - 1) / 64; ++w) {
    std::uint64_t bits = rows_[row * words_ + w] & masks_[run_index * words_ + w];
    for (; bits != 0; bits &= bits - 1) f(row * grid_w_ + 64 * w + __builtin_ctzll(bits));
  }
}

template <class T>
void Components::add_excess(const T* cells, double base, double* masses) const {
  for (int index = 0; index < num_runs_; ++index) {
    const Run& run = runs_[index];
    for (int row = 2 * run.strip; row < 2 * run.strip + 2; ++row) {
      for_each_cell(run, index, row, [&](int cell) {
        const double excess = to_double(cells[cell]) - base;
        if (excess > 0) masses[run.region] += excess;
      });
    }
  }
}

void Components::write_labels(std::int32_t* labels) {
  for (int cell = 0; cell < grid_h_ * grid_w_; ++cell) labels[cell] = 0;
  for (int region = 0; region < num_regions_; ++region) numbers_[region] = 0;
  int last = 0;
  for (int begin = 0, end = 0; begin < num_runs_; begin = end) {
    const int strip = runs_[begin].strip;
    while (end < num_runs_ && runs_[end].strip == strip) ++end;
    for (int row = 2 * strip; row < 2 * strip + 2; ++row) {
      for (int index = begin; index < end; ++index) {
        int& number = numbers_[runs_[index].region];
        for_each_cell(runs_[index], index, row, [&](int cell) {
          if (number == 0) number = ++last;
          labels[cell] = number;
        });
      }
    }
  }
}

}  // namespace
}  // namespace fastground
