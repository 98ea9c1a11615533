// The convex hull of a region, by a warp: as hull.hpp defines it.
//
// On the CPU a chain is walked from top to bottom. Here a lane has a grid line and asks of its two
// outermost corners whether they are corners of the hull: whether the steepest way to it from
// above is still steeper than every way on, compared in whole numbers. That is as much work as
// lines are high, and no lane waits for another.
#pragma once

#include "hull.hpp"
#include "warp.cuh"

namespace fastground {
namespace {

class WarpHull {
 public:
  FASTGROUND_ANYWHERE WarpHull(Arena& arena, int grid_h)
      : left_{arena.take<int>(grid_h + 1), arena.take<bool>(grid_h + 1)},
        right_{arena.take<int>(grid_h + 1), arena.take<bool>(grid_h + 1)} {}

  // Of the cells in rows [top, bottom), each of which holds one; returns twice the area.
  template <int Words>
  __device__ int enclose(const std::uint64_t* rows, int top, int bottom) {
    for (int y = top + this_lane(); y <= bottom; y += warp_size) {
      int first = 64 * Words;
      int last = 0;
      for (int i = y - 1; i <= y; ++i) {
        if (i < top || i >= bottom) continue;
        const auto row = Bits<Words>::read(&rows[i * Words]);
        first = row.first() < first ? row.first() : first;
        last = row.last() + 1 > last ? row.last() + 1 : last;
      }
      left_.x[y] = first;
      right_.x[y] = last;
    }
    __syncwarp();
    for (int y = top + this_lane(); y <= bottom; y += warp_size) {
      left_.corner[y] = is_corner<+1>(left_.x, y, top, bottom);
      right_.corner[y] = is_corner<-1>(right_.x, y, top, bottom);
    }
    __syncwarp();
    int twice = 0;
    for (int y = top + this_lane(); y < bottom; y += warp_size) {
      if (right_.corner[y]) twice += twice_below(right_, y);
      if (left_.corner[y]) twice -= twice_below(left_, y);
    }
    return sum_of_lanes(twice);
  }

  // Writes to rows [top, bottom), those it was made of, the cells whose centre lies within.
  template <int Words>
  __device__ void fill(std::uint64_t* rows, int top, int bottom) const {
    for (int i = top + this_lane(); i < bottom; i += warp_size) {
      cells_between<Words>(at_or_above(left_, i), below(left_, i), at_or_above(right_, i),
                           below(right_, i), i)
          .write(&rows[i * Words]);
    }
    __syncwarp();
  }

 private:
  struct Side {
    int* x;        // of each grid line, the outermost corner
    bool* corner;  // whether it is one of the hull
  };

  __device__ static Point at_or_above(const Side& side, int y) {
    while (!side.corner[y]) --y;
    return {side.x[y], y};
  }
  __device__ static Point below(const Side& side, int y) {
    do ++y;
    while (!side.corner[y]);
    return {side.x[y], y};
  }

  // Twice the area between the line x = 0 and the edge that begins at y.
  __device__ static int twice_below(const Side& side, int y) {
    const Point next = below(side, y);
    return (side.x[y] + next.x) * (next.y - y);
  }

  // Side is +1 for the left one, -1 for the right.
  template <int Side>
  __device__ static bool is_corner(const int* x, int y, int top, int bottom) {
    if (y == top || y == bottom) return true;
    int in_dx = Side * (x[y] - x[y - 1]);  // dx / dy of the way from above that leans most
    int in_dy = 1;
    for (int from = y - 2; from >= top; --from) {
      const int dx = Side * (x[y] - x[from]);
      const int dy = y - from;
      if (dx * in_dy > in_dx * dy) {
        in_dx = dx;
        in_dy = dy;
      }
    }
    for (int to = y + 1; to <= bottom; ++to) {
      if (Side * (x[to] - x[y]) * in_dy <= in_dx * (to - y)) return false;
    }
    return true;
  }

  Side left_, right_;
};

}  // namespace
}  // namespace fastground
