// The combined map of k heads, by a warp: as smooth.hpp does it on the CPU, to the bit.
//
//     cells   the sum of the heads, read once
//     lines   weighed along the columns: a lane goes down one, the rows within reach in registers
//     out     weighed along the lines
//
// What float32 does not suffice for is computed in float64, one head after the other.
#pragma once

#include "cells.cuh"
#include "filter.hpp"

namespace fastground {
namespace {

// The taps in memory that kernels can read, and whether float32 will do for them.
struct Filter {
  const double* weights;
  int count;
  Border border;
  bool by_floats;
};

template <int radius>
__device__ __noinline__ void smooth_floats(const float* cells, int grid_h, int grid_w,
                                           const Filter& filter, float* lines, float* out) {
  Weights<radius, float> weights;
#pragma unroll
  for (int t = 0; t <= radius; ++t) {
    weights.at[t] = static_cast<float>(filter.weights[radius + t]) * enlarged;
  }
  for (int j = this_lane(); j < grid_w; j += warp_size) {
    float window[2 * radius + 1];
#pragma unroll
    for (int t = 0; t < 2 * radius; ++t) {
      window[t] = cells[reflected(t - radius, grid_h, filter.border) * grid_w + j];
    }
    for (int i = 0; i < grid_h; ++i) {
      const int next = i + radius;
      const int entering = next < grid_h ? next : reflected(next, grid_h, filter.border);
      window[2 * radius] = cells[entering * grid_w + j];
      lines[i * grid_w + j] = weigh(window, weights);
#pragma unroll
      for (int t = 0; t < 2 * radius; ++t) window[t] = window[t + 1];
    }
  }
  __syncwarp();
  for (int j = this_lane(); j < grid_w; j += warp_size) {
    int around[2 * radius + 1];
#pragma unroll
    for (int t = 0; t <= 2 * radius; ++t) {
      around[t] = reflected(j + t - radius, grid_w, filter.border);
    }
    for (int i = 0; i < grid_h; ++i) {
      float window[2 * radius + 1];
#pragma unroll
      for (int t = 0; t <= 2 * radius; ++t) window[t] = lines[i * grid_w + around[t]];
      out[i * grid_w + j] = weigh(window, weights) * (1 / (enlarged * enlarged));
    }
  }
  __syncwarp();
}

__device__ inline void smooth_floats(const float* cells, int grid_h, int grid_w,
                                     const Filter& filter, float* lines, float* out) {
  switch (filter.count / 2) {
    case 0:
      return smooth_floats<0>(cells, grid_h, grid_w, filter, lines, out);
    case 1:
      return smooth_floats<1>(cells, grid_h, grid_w, filter, lines, out);
    case 2:
      return smooth_floats<2>(cells, grid_h, grid_w, filter, lines, out);
    case 3:
      return smooth_floats<3>(cells, grid_h, grid_w, filter, lines, out);
    default:
      return smooth_floats<4>(cells, grid_h, grid_w, filter, lines, out);
  }
}

// value(0) * weights[0] + value(1) * weights[1] + ..., added in this order.
template <class Value>
__device__ double weigh_in_order(const Filter& filter, Value&& value) {
  double sum = value(0) * filter.weights[0];
  for (int t = 1; t < filter.count; ++t) sum += value(t) * filter.weights[t];
  return sum;
}

// A warp's memory for one combined map.
class Combiner {
 public:
  FASTGROUND_ANYWHERE Combiner(Arena& arena, int grid_h, int grid_w)
      : first_(arena.take<double>(grid_h * grid_w)),
        second_(arena.take<double>(grid_h * grid_w)),
        grid_h_(grid_h),
        grid_w_(grid_w) {}

  // The bytes from the memory's begin on that hold the combined map.
  FASTGROUND_ANYWHERE std::size_t kept_bytes() const {
    return (grid_h_ * grid_w_ * sizeof(float) + 15) / 16 * 16;
  }
  __device__ float* combined() const { return reinterpret_cast<float*>(first_); }

  // Writes combined(), of `heads` maps from `index` on, and returns its sum, in all lanes.
  __device__ double combine(const Maps& maps, std::int64_t index, int heads,
                            const Filter& filter) const {
    const int count = grid_h_ * grid_w_;
    if (filter.by_floats) {
      auto* cells = reinterpret_cast<float*>(second_);
      with_number_type(maps.dtype, [&](auto type) {
        if constexpr (sizeof(type) <= 4) add_heads<decltype(type)>(maps, index, heads, cells);
      });
      __syncwarp();
      smooth_floats(cells, grid_h_, grid_w_, filter, cells + count, combined());
      const double sum = sum_of(combined(), count);
      if (is_finite(sum)) return sum;
      __syncwarp();
    }
    for (int head = 0; head < heads; ++head) {
      add_exactly(maps.any(index + head), head == 0, filter);
    }
    for (int i = this_lane(); i < count; i += warp_size) {
      combined()[i] = static_cast<float>(second_[i]);
    }
    __syncwarp();
    return sum_of(combined(), count);
  }

 private:
  template <class T>
  __device__ void add_heads(const Maps& maps, std::int64_t index, int heads, float* cells) const {
    const T* from = maps.map<T>(index);
    for (int i = this_lane(); i < grid_h_ * grid_w_; i += warp_size) {
      float cell = number(from[i]);
      for (int head = 1; head < heads; ++head) cell += number(from[head * maps.stride + i]);
      cells[i] = cell;
    }
  }

  // In float64, taps and heads added in order; NaN unless all cells are finite.
  __device__ void add_exactly(const AnyCells& cells, bool first_head, const Filter& filter) const {
    const int count = grid_h_ * grid_w_;
    const int radius = filter.count / 2;
    const double factor = is_finite(sum_of(cells, count)) ? 1.0 : NAN;
    for (int i = this_lane(); i < count; i += warp_size) {
      const int row = i / grid_w_ - radius;
      const int column = i % grid_w_;
      first_[i] = weigh_in_order(filter, [&](int t) {
        return cells[reflected(row + t, grid_h_, filter.border) * grid_w_ + column];
      });
    }
    __syncwarp();
    for (int i = this_lane(); i < count; i += warp_size) {
      const int begin = i / grid_w_ * grid_w_;
      const int column = i % grid_w_ - radius;
      const double smoothed =
          factor * weigh_in_order(filter, [&](int t) {
            return first_[begin + reflected(column + t, grid_w_, filter.border)];
          });
      second_[i] = first_head ? smoothed : second_[i] + smoothed;
    }
    __syncwarp();
  }

  double* first_;   // columns weighed, then the result as float
  double* second_;  // the sum of heads in float64; else the cells and the lines as float
  int grid_h_, grid_w_;
};

static __global__ void __launch_bounds__(warp_size, 16)
    combine_by_warp(Maps maps, int heads, Filter filter, void* workspace, std::size_t bytes,
                    float* combined) {
  Arena arena(block_memory(workspace, bytes));
  const int count = maps.grid_h * maps.grid_w;
  const Combiner combiner(arena, maps.grid_h, maps.grid_w);
  for (std::int64_t group = blockIdx.x; group < maps.count / heads; group += gridDim.x) {
    combiner.combine(maps, group * heads, heads, filter);
    float* to = combined + group * count;
    for (int i = this_lane(); i < count; i += warp_size) to[i] = combiner.combined()[i];
    __syncwarp();
  }
}

}  // namespace
}  // namespace fastground
