// A grid of at most 31 rows and 32 columns in a warp's registers: its regions and their hulls.
//
//     rows     lane i has row i, a bit a cell
//     strips   lane s has rows 2 s and 2 s + 1, and their OR, of which a run is one piece
//     lines    lane y has the grid line above row y: the outermost corners on it
#pragma once

#include "hull.hpp"
#include "warp.cuh"

namespace fastground {
namespace {

// Of no bits, -1.
__device__ inline int first_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
__device__ inline int last_bit(std::uint32_t bits) { return 31 - __clz(static_cast<int>(bits)); }
__device__ inline std::uint32_t from_lane(std::uint32_t bits, int lane) {
  return __shfl_sync(all_lanes, bits, lane);
}

// A warp's memory.
struct RowsMemory {
  FASTGROUND_ANYWHERE RowsMemory(Arena& arena, int grid_h, int grid_w)
      : cells(arena.take<float>(grid_h * grid_w)),
        outermost(arena.take<Pair>(3 * warp_size)),
        shares(arena.take<float>(warp_size)) {}

  struct alignas(8) Pair {
    float left, right;  // the right one negative, so that both sides are alike
  };

  // Once; before what was written is read, all lanes wait for others.
  __device__ void begin() const {
    const int lane = this_lane();
    outermost[lane] = outermost[lane + 2 * warp_size] = {INFINITY, INFINITY};
    shares[lane] = 1.0f / static_cast<float>(lane + 1);
  }

  float* cells;     // the combined map
  Pair* outermost;  // corners of each line, the first at 32; infinite where there is none
  float* shares;    // 1, 1/2, 1/3, ...
};

// The hull of a region, of which a lane has a line.
struct HullOfRows {
  int left, right;                            // the outermost corners
  std::uint32_t left_corners, right_corners;  // the lines where these are the hull's

  // A corner is one of the hull where the ways to it from above lean less than those on. Of lines
  // no further apart than 31 two different ways differ by 1/240 at least, and float32 is far finer.
  __device__ HullOfRows(const RowsMemory& w, std::uint32_t row, int height) {
    const int lane = this_lane();
    const std::uint32_t line = row | __shfl_up_sync(all_lanes, row, 1);
    left = first_bit(line);
    right = last_bit(line) + 1;
    const float x = line != 0 ? static_cast<float>(left) : INFINITY;
    const float minus_x = line != 0 ? -static_cast<float>(right) : INFINITY;
    __syncwarp();
    w.outermost[lane + warp_size] = {x, minus_x};
    __syncwarp();
    float left_in = -INFINITY, right_in = -INFINITY;
    float left_on = INFINITY, right_on = INFINITY;
    const RowsMemory::Pair* from = &w.outermost[lane + warp_size];
#pragma unroll 1
    for (int begin = 0; begin < height; begin += 4) {
      const float4 some = *reinterpret_cast<const float4*>(&w.shares[begin]);
      const float shares[] = {some.x, some.y, some.z, some.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float share = shares[k];
        const auto above = from[-begin - k - 1];
        const auto below = from[begin + k + 1];
        left_in = fmaxf(left_in, (x - above.left) * share);
        right_in = fmaxf(right_in, (minus_x - above.right) * share);
        left_on = fminf(left_on, (below.left - x) * share);
        right_on = fminf(right_on, (below.right - minus_x) * share);
      }
    }
    constexpr float nothing = 1.0f / 1024;
    left_corners = __ballot_sync(all_lanes, line != 0 && left_on - left_in > nothing);
    right_corners = __ballot_sync(all_lanes, line != 0 && right_on - right_in > nothing);
  }

  // The corner at or above this lane's line, and that below.
  __device__ static Point above(int x, std::uint32_t corners) {
    const int y = last_bit(corners & 0xffffffffu >> (31 - this_lane()));
    return {__shfl_sync(all_lanes, x, y & 31), y};
  }
  __device__ static Point below(int x, std::uint32_t corners) {
    const int y = first_bit(corners & 0xfffffffeu << this_lane());
    return {__shfl_sync(all_lanes, x, y & 31), y};
  }

  __device__ static int twice_below(int x, std::uint32_t corners) {
    const int y = this_lane();
    const Point next = below(x, corners);
    return (corners >> y & 1) != 0 && next.y >= 0 ? (x + next.x) * (next.y - y) : 0;
  }
  __device__ int twice_area() const {
    return __reduce_add_sync(all_lanes,
                             twice_below(right, right_corners) - twice_below(left, left_corners));
  }

  // This lane's row of the cells whose centre lies within.
  __device__ std::uint32_t filled(int top, int bottom) const {
    const Point begin = above(left, left_corners);
    const Point end = below(left, left_corners);
    const Point other_begin = above(right, right_corners);
    const Point other_end = below(right, right_corners);
    const int i = this_lane();
    if (i < top || i >= bottom) return 0;
    return static_cast<std::uint32_t>(
        cells_between<1>(begin, end, other_begin, other_end, i).word[0]);
  }
};

// All foreground, and its regions.
struct StripsOfRows {
  std::uint32_t upper, lower, both, backwards;

  __device__ explicit StripsOfRows(std::uint32_t row) {
    upper = from_lane(row, 2 * this_lane() & 31);
    lower = from_lane(row, (2 * this_lane() + 1) & 31);
    if (this_lane() >= 16) upper = lower = 0;
    both = upper | lower;
    backwards = __brev(both);
  }

  __device__ static std::uint32_t widened(std::uint32_t x) { return x | x << 1 | x >> 1; }

  // The strips of the region that holds this seed. A lane at the end meets itself, which adds
  // nothing: what touches within a strip is one run.
  __device__ std::uint32_t flood(std::uint32_t seed) const {
    std::uint32_t found = 0;
    while (true) {
      const std::uint32_t back = __brev(seed);
      const std::uint32_t left = __brev(backwards & ~(backwards + back));
      const std::uint32_t now = both & (seed | left | ~(both + seed));
      const bool more = now != found;
      found = now;
      if (!__any_sync(all_lanes, more)) return found;
      const std::uint32_t above = __shfl_up_sync(all_lanes, found & lower, 1);
      const std::uint32_t below = __shfl_down_sync(all_lanes, found & upper, 1);
      seed = found | (widened(above) & upper) | (widened(below) & lower);
    }
  }

  // The sum of a region's cells, added in the order of the CPU's, by all lanes alike.
  __device__ double sum_of_cells(std::uint32_t region, const float* cells, int grid_w) const {
    double sum = 0;
    unsigned strips = __ballot_sync(all_lanes, region != 0);
    for (; strips != 0; strips &= strips - 1) {
      const int strip = first_bit(strips);
      const std::uint32_t rows[2] = {from_lane(upper, strip), from_lane(lower, strip)};
      std::uint32_t rest = from_lane(region, strip);
      while (rest != 0) {
        const std::uint32_t run = rest & ~(rest + (rest & (~rest + 1)));
        rest &= ~run;
        for (int i = 0; i < 2; ++i) {
          for (std::uint32_t bits = run & rows[i]; bits != 0; bits &= bits - 1) {
            sum += cells[(2 * strip + i) * grid_w + first_bit(bits)];
          }
        }
      }
    }
    return sum;
  }
};

}  // namespace
}  // namespace fastground
