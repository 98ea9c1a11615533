// The 8-connected regions of one binary grid.
//
// A row is a bit mask. Rows are taken in pairs (strips), because a run of set bits in the OR of
// two neighbouring rows is always one 8-connected piece:
//
//     upper   . # # . . . #        OR   . # # # . . #     two runs: [1, 4) and [6, 7)
//     lower   . . . # . . .
//
// So half the rows and fewer runs remain. A run touches a run of the strip above where its upper
// row, widened by one column to both sides, meets the lower row of that run. Which run that is
// follows from the column alone: as many runs begin up to there. Touching runs are united in a
// union-find forest whose root is a region's first run. What a run costs is mostly mispredicted
// branches, so few depend on the cells: most runs touch none or one, and take the same path.
//
// Source: the idea of runs of OR-ed row pairs, "BMRS": Lee, Bolelli, Allegretti, Grana, 2021.
#pragma once

#include "bits.hpp"
#include "cells.hpp"

namespace fastground {
namespace {

struct Region {
  int left, top, right, bottom;  // its tight box, half-open
  int cells;
};

// Working memory for grids of one size; made once, used for every map.
class Components {
 public:
  Components(Scratch& scratch, int grid_h, int grid_w);

  // Finds the regions of a bit stream; returns how many.
  int find(const std::uint64_t* stream) {
    words_ == 1 ? find_by<1>(stream, false) : find_by<4>(stream, false);
    return num_regions_;
  }

  // Finds those of more than one cell; if there is none, all.
  int find_larger(const std::uint64_t* stream) {
    words_ == 1 ? find_by<1>(stream, true) : find_by<4>(stream, true);
    return num_regions_;
  }

  // The number of cells of each region found, in no fixed order.
  const std::int32_t* areas() const { return areas_; }

  // The box and cells of a region, in the order of areas().
  Region region(int index) const {
    const Extent e = extents_[index];
    return {e[0], e[1], -e[2], -e[3], areas_[index]};
  }

  // Writes the rows of a region, row i at `rows` + i * Words. The others are not written, but for
  // one that shares a strip with a row of the region: that has no bits.
  template <int Words>
  void write_rows(int region, std::uint64_t* rows) const;

  // Adds to masses[region], in the order of areas(), its cells' excess over `base`, at least 0.
  template <class T>
  void add_excess(const T* cells, double base, double* masses) const {
    add_up(masses, [&](int cell) {
      const double excess = to_double(cells[cell]) - base;
      return excess > 0 ? excess : 0;
    });
  }

  // Writes to sums[region], in the order of areas(), the sum of its cells.
  void add_cells(const float* cells, double* sums) const {
    for (int region = 0; region < num_regions_; ++region) sums[region] = 0;
    add_up(sums, [&](int cell) { return double{cells[cell]}; });
  }

  // Finds the regions of a bit stream and writes 1, 2, ... into the cells of each, in raster order
  // of its first cell, and 0 into the others.
  void label(const std::uint64_t* stream, std::int32_t* labels) {
    words_ == 1 ? label_by<1>(stream, labels) : label_by<4>(stream, labels);
  }

 private:
  using Extent = typename VectorOf<std::int32_t, 16>::type;  // left, top, -right, -bottom

  template <int Words>
  void find_by(const std::uint64_t* stream, bool larger);
  template <int Words>
  void drop_single_cells();
  template <int Words>
  void connect();
  template <int Words>
  void measure();
  template <class F>
  void add_up(double* totals, F&& value) const;
  template <int Words>
  void label_by(const std::uint64_t* stream, std::int32_t* labels);
  template <int Words>
  void number();
  template <int Words>
  void write_labels(std::int32_t* labels);
  int root(int run);
  void unite(int a, int b);

  int grid_h_;
  int grid_w_;
  int strips_;
  int words_;             // 64-bit words a row: 1 or 4
  std::uint64_t* rows_;   // bits of each row, an even number of them, and one more
  std::uint64_t* spare_;  // as many
  int* begins_;           // the runs of strip k are [begins_[k], begins_[k + 1])
  std::uint64_t* masks_;  // bits of each run
  int* strip_;            // of each run
  int* parent_;           // of each run: a run of the same region, not after it
  int* region_;           // of each run
  int num_regions_ = 0;
  std::int32_t* areas_;
  Extent* extents_;
  std::int32_t* numbers_;  // of each region, as a label
  std::uint64_t* firsts_;  // a stream of the regions' first cells
  int* ranks_;             // of each word's first cell among them
  std::int32_t* lines_;    // the labels of each strip's columns
  int line_size_;
};

Components::Components(Scratch& scratch, int grid_h, int grid_w)
    : grid_h_(grid_h), grid_w_(grid_w), strips_((grid_h + 1) / 2), words_(grid_w <= 64 ? 1 : 4) {
  const int most_runs = strips_ * ((grid_w + 1) / 2);
  rows_ = scratch.take<std::uint64_t>((2 * strips_ + 1) * words_);
  spare_ = scratch.take<std::uint64_t>((2 * strips_ + 1) * words_);
  begins_ = scratch.take<int>(strips_ + 1);
  masks_ = scratch.take<std::uint64_t>(most_runs * words_);
  strip_ = scratch.take<int>(most_runs);
  parent_ = scratch.take<int>(most_runs);
  region_ = scratch.take<int>(most_runs);
  areas_ = scratch.take<std::int32_t>(most_runs);
  extents_ = scratch.take<Extent>(most_runs);
  numbers_ = scratch.take<std::int32_t>(most_runs);
  firsts_ = scratch.take<std::uint64_t>(stream_words(grid_h * grid_w));
  ranks_ = scratch.take<int>(stream_words(grid_h * grid_w));
  line_size_ = (grid_w + 15) / 16 * 16 + 16;
  lines_ = scratch.take<std::int32_t>(strips_ * line_size_);
}

template <int Words>
void Components::find_by(const std::uint64_t* stream, bool larger) {
  unpack_rows<Words>(stream, grid_h_, grid_w_, rows_);
  Bits<Words>{}.write(&rows_[grid_h_ * Words]);
  if (larger) drop_single_cells<Words>();
  connect<Words>();
  measure<Words>();
}

template <int Words>
void Components::drop_single_cells() {
  using Row = Bits<Words>;
  Row any;
  Row above;
  Row row = Row::read(&rows_[0]);
  for (int i = 0; i < grid_h_; ++i) {
    const Row below = Row::read(&rows_[(i + 1) * Words]);
    const Row kept = row & ((above | below).widened() | row.right() | row.left());
    kept.write(&spare_[i * Words]);
    any = any | kept;
    above = row;
    row = below;
  }
  if (!any.any()) return;
  Row{}.write(&spare_[grid_h_ * Words]);
  std::uint64_t* rows = rows_;
  rows_ = spare_;
  spare_ = rows;
}

template <int Words>
void Components::connect() {
  using Row = Bits<Words>;
  int count = 0;
  int above = 0;  // the first run of the strip above
  Row above_starts;
  Row above_lower;
  for (int strip = 0; strip < strips_; ++strip) {
    begins_[strip] = count;
    const Row upper = Row::read(&rows_[2 * strip * Words]);
    const Row lower = Row::read(&rows_[(2 * strip + 1) * Words]);
    const Row both = upper | lower;
    const Row starts = both.without(both.right());
    for (Row rest = both; rest.any();) {
      const Row mask = rest.lowest_run();
      const int index = count++;
      rest = rest.without(mask);
      mask.write(&masks_[index * Words]);
      strip_[index] = strip;
      parent_[index] = index;
      // The first run above that it touches and that is not yet dealt with, or itself. No branch:
      // whether there is one cannot be predicted.
      Row touching = (upper & mask).widened() & above_lower;
      const auto take_touched = [&] {
        const int found = above + above_starts.count_through_first(touching) - 1;
        const int run = index + (-static_cast<int>(touching.any()) & (found - index));
        touching = touching.without(Row::read(&masks_[run * Words]));
        return run;
      };
      parent_[index] = root(take_touched());
      while (touching.any()) unite(take_touched(), index);
    }
    above = begins_[strip];
    above_starts = starts;
    above_lower = lower;
  }
  begins_[strips_] = count;
  int regions = 0;
  for (int index = 0; index < count; ++index) {
    region_[index] = regions;
    region_[index] = region_[parent_[index]];  // the parent comes earlier, or is this one
    regions += parent_[index] == index;
  }
  num_regions_ = regions;
}

// The box of each region and the number of its cells.
template <int Words>
void Components::measure() {
  using Row = Bits<Words>;
  constexpr Extent nothing = {1 << 30, 1 << 30, 1 << 30, 1 << 30};
  for (int region = 0; region < num_regions_; ++region) {
    extents_[region] = nothing;
    areas_[region] = 0;
  }
  for (int index = 0; index < begins_[strips_]; ++index) {
    const int strip = strip_[index];
    const Row mask = Row::read(&masks_[index * Words]);
    const Row upper = mask & Row::read(&rows_[2 * strip * Words]);
    const Row lower = mask & Row::read(&rows_[(2 * strip + 1) * Words]);
    const int top = 2 * strip + !upper.any();
    const int bottom = 2 * strip + 1 + lower.any();
    const Extent extent = {mask.first(), top, -1 - mask.last(), -bottom};
    Extent& least = extents_[region_[index]];
    least = extent < least ? extent : least;
    areas_[region_[index]] += upper.count() + lower.count();
  }
}

int Components::root(int run) {
  while (parent_[run] != run) run = parent_[run];
  return run;
}

void Components::unite(int a, int b) {
  a = root(a);
  b = root(b);
  parent_[a < b ? b : a] = a < b ? a : b;
}

template <int Words>
void Components::write_rows(int region, std::uint64_t* rows) const {
  using Row = Bits<Words>;
  const Region box = this->region(region);
  const int first = box.top / 2;
  const int last = (box.bottom - 1) / 2;
  for (int i = 2 * first * Words; i < 2 * (last + 1) * Words; ++i) rows[i] = 0;
  for (int index = begins_[first]; index < begins_[last + 1]; ++index) {
    const int strip = strip_[index];
    Row mask = Row::read(&masks_[index * Words]);
    for (std::uint64_t& word : mask.word) word &= -std::uint64_t{region_[index] == region};
    const int upper = 2 * strip * Words;
    const int lower = upper + Words;
    (Row::read(&rows[upper]) | (mask & Row::read(&rows_[upper]))).write(&rows[upper]);
    (Row::read(&rows[lower]) | (mask & Row::read(&rows_[lower]))).write(&rows[lower]);
  }
}

template <class F>
void Components::add_up(double* totals, F&& value) const {
  for (int index = 0; index < begins_[strips_]; ++index) {
    double total = totals[region_[index]];
    for (int row = 2 * strip_[index]; row < 2 * strip_[index] + 2; ++row) {
      for (int w = 0; w < words_; ++w) {
        std::uint64_t bits = rows_[row * words_ + w] & masks_[index * words_ + w];
        for (; bits != 0; bits &= bits - 1) {
          total += value(row * grid_w_ + 64 * w + __builtin_ctzll(bits));
        }
      }
    }
    totals[region_[index]] = total;
  }
}

template <int Words>
void Components::label_by(const std::uint64_t* stream, std::int32_t* labels) {
  unpack_rows<Words>(stream, grid_h_, grid_w_, rows_);
  Bits<Words>{}.write(&rows_[grid_h_ * Words]);
  connect<Words>();
  number<Words>();
  write_labels<Words>(labels);
}

// Gives each region its place in raster order of the first cells, as the rank of that cell's bit
// among those of all regions.
template <int Words>
void Components::number() {
  using Row = Bits<Words>;
  const int cells = grid_h_ * grid_w_;
  for (int region = 0; region < num_regions_; ++region) numbers_[region] = cells;
  for (int index = 0; index < begins_[strips_]; ++index) {
    const int row = 2 * strip_[index] * Words;
    const Row mask = Row::read(&masks_[index * Words]);
    const Row upper = mask & Row::read(&rows_[row]);
    const int in_lower = !upper.any();
    const Row first_row = mask & Row::read(&rows_[row + in_lower * Words]);
    const int cell = (2 * strip_[index] + in_lower) * grid_w_ + first_row.first();
    std::int32_t& first = numbers_[region_[index]];
    first = cell < first ? cell : first;
  }
  const int words = stream_words(cells);
  for (int i = 0; i < words; ++i) firsts_[i] = 0;
  for (int region = 0; region < num_regions_; ++region) {
    firsts_[numbers_[region] / 64] |= std::uint64_t{1} << numbers_[region] % 64;
  }
  for (int i = 0, before = 1; i < words; ++i) {
    ranks_[i] = before;
    before += __builtin_popcountll(firsts_[i]);
  }
  for (int region = 0; region < num_regions_; ++region) {
    const int first = numbers_[region];
    const std::uint64_t earlier = firsts_[first / 64] & bits_below(first % 64);
    numbers_[region] = ranks_[first / 64] + __builtin_popcountll(earlier);
  }
}

// Every run is laid out as its number over the strip's columns, a register at a time, what it
// writes too much being overwritten by the next one; the rows pick of them by their bits.
template <int Words>
void Components::write_labels(std::int32_t* labels) {
  using Row = Bits<Words>;
  constexpr int width = lanes<std::int32_t>;
  for (int index = 0; index < begins_[strips_]; ++index) {
    const Row mask = Row::read(&masks_[index * Words]);
    const auto number = broadcast(numbers_[region_[index]]);
    std::int32_t* line = lines_ + strip_[index] * line_size_;
    const int last = mask.last();
    for (int column = mask.first(); column <= last; column += width) store(line + column, number);
  }
  const int cells = grid_h_ * grid_w_;
  for (int i = 0, at = 0; i < grid_h_; ++i, at += grid_w_) {
    const std::int32_t* line = lines_ + i / 2 * line_size_;
    for (int column = 0; column < grid_w_; column += width) {
      const std::uint64_t bits = rows_[i * Words + column / 64] >> (column % 64);
      const auto values = load(line + column) & lanes_of<std::int32_t>(bits);
      const int room = cells - at - column;
      if (room >= width) {
        store(labels + at + column, values);
      } else {
        __builtin_memcpy(labels + at + column, &values, room * sizeof(std::int32_t));
      }
    }
  }
}

}  // namespace
}  // namespace fastground
