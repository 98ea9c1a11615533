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

#include <cstdint>
#include <vector>

#include "map_view.hpp"

namespace fastground {

enum class Cut { mean, mean_eps, two_mean_eps };

// The mean of cells of this sum; at least their least, so that rounding cannot turn a constant map
// to foreground.
double mean_of(const double* cells, int count, double sum);

// The value that foreground exceeds.
double level_of(Cut cut, double mean);

// Working memory for grids of one size; made once, used for every map.
class Components {
 public:
  Components(int grid_h, int grid_w);

  // Finds the regions of the cells above `level`, where given only of those whose `valid` is not
  // 0; returns how many. No cell exceeds NaN.
  int find(const double* cells, double level, const double* valid = nullptr);

  // The number of cells of each region found, in no fixed order.
  const std::vector<int>& areas() const { return areas_; }

  // Adds to masses[region], in the order of areas(), its cells' excess over `base`, at least 0.
  void add_excess(const double* cells, double base, double* masses) const;

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
  int words_;                         // 64-bit words a row: 1 or 4
  std::vector<std::uint64_t> rows_;   // bits of each row, an even number of rows
  std::vector<std::uint64_t> masks_;  // bits of each run
  std::vector<Run> runs_;
  int num_runs_ = 0;
  std::vector<int> areas_;
  std::vector<int> numbers_;
};

}  // namespace fastground
