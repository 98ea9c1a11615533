// The combined map of k heads, by a warp: as smooth.hpp does it on the CPU, to the bit.
//
//     cells   the sum of the heads, read once
//     lines   weighed along the columns: a lane goes down one, the rows within reach in registers
//     out     weighed along the lines, from one memory to another; or, on a grid of at most 32
//             columns, which has a lane for each, from what the other lanes just made of theirs
//
// What float32 does not suffice for is computed in float64, one head after the other. Of what is
// read, many cells are asked for before the first is needed: on their way is what time goes to.
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

// Cells asked for at once by a lane.
constexpr int ahead = 8;

// Sums of the cells `at[...]` over `heads` maps, in their order: the first begins at `from`, each
// of the others `stride` cells further on.
template <class T, int n>
__device__ void sum_heads(const T* from, int heads, std::int64_t stride, const int (&at)[n],
                          float* sums) {
#pragma unroll
  for (int c = 0; c < n; ++c) sums[c] = number(from[at[c]]);
#pragma unroll 1
  for (int head = 1; head < heads; ++head) {
    from += stride;
#pragma unroll
    for (int c = 0; c < n; ++c) sums[c] += number(from[at[c]]);
  }
}

// The same of all `count` cells, by a warp.
template <class T>
__device__ __noinline__ void sum_cells(const T* from, int heads, std::int64_t stride, int count,
                                       float* sums) {
#pragma unroll 1
  for (int begin = this_lane(); begin < count; begin += ahead * warp_size) {
    int at[ahead];
    float some[ahead];
#pragma unroll
    for (int c = 0; c < ahead; ++c) {
      const int i = begin + c * warp_size;
      at[c] = i < count ? i : count - 1;
    }
    sum_heads(from, heads, stride, at, some);
#pragma unroll
    for (int c = 0; c < ahead; ++c) {
      if (begin + c * warp_size < count) sums[at[c]] = some[c];
    }
  }
}

template <int radius>
__device__ Weights<radius, float> weights_of(const Filter& filter) {
  Weights<radius, float> weights;
#pragma unroll
  for (int t = 0; t <= radius; ++t) {
    weights.at[t] = static_cast<float>(filter.weights[radius + t]) * enlarged;
  }
  return weights;
}

// Undoes the enlargement of both passes.
constexpr float made_smaller = 1 / (enlarged * enlarged);

// Whether each lane can have a column, and a cell outside the grid stands for one at the first
// reflection.
FASTGROUND_ANYWHERE inline bool fits_lanes(int radius, int grid_h, int grid_w) {
  return radius < grid_h && radius < grid_w && grid_w <= warp_size;
}

// What a lane knows before it sees a map: its column (lanes without one do what the last one does,
// but write nothing), and which lanes have those within reach.
template <int radius>
struct LaneFilter {
  __device__ LaneFilter(const Filter& filter, int grid_w)
      : weights(weights_of<radius>(filter)),
        own(this_lane() < grid_w),
        column(own ? this_lane() : grid_w - 1),
        shared(filter.border == Border::reflect101) {
#pragma unroll
    for (int t = 0; t <= 2 * radius; ++t) around[t] = inside(column + t - radius, grid_w);
  }

  // Reflected, once at most.
  __device__ int inside(int i, int size) const {
    return i < 0 ? shared - 1 - i : (i < size ? i : 2 * size - 1 - shared - i);
  }

  Weights<radius, float> weights;
  bool own;
  int column;
  int shared;
  int around[2 * radius + 1];
};

// Writes the smoothed sum, of maps as sum_heads has them: asks for so many rows at once, in a loop
// that is unrolled so many times. Returns 0 in all lanes only if the sum is finite.
template <int rows, int unrolled, int radius, class T>
__device__ float smooth_by_lanes(const LaneFilter<radius>& lane, const T* from, int heads,
                                 std::int64_t stride, int grid_h, int grid_w, float* out) {
  from += lane.column;
  out += lane.column;
  float window[2 * radius + rows];
  if constexpr (radius > 0) {
    int at[2 * radius];
#pragma unroll
    for (int t = 0; t < 2 * radius; ++t) at[t] = lane.inside(t - radius, grid_h) * grid_w;
    sum_heads(from, heads, stride, at, window);
  }
  float spoilt = 0;  // by infinity and NaN, which differ from themselves by NaN
#pragma unroll unrolled
  for (int begin = 0; begin < grid_h; begin += rows) {
    int at[rows];
    const int entering = begin + radius;
    if (entering + rows <= grid_h) {
#pragma unroll
      for (int a = 0; a < rows; ++a) at[a] = (entering + a) * grid_w;
    } else {
#pragma unroll
      for (int a = 0; a < rows; ++a) {
        const int last = grid_h - 1 + radius;  // that any row needs
        at[a] = lane.inside(entering + a < last ? entering + a : last, grid_h) * grid_w;
      }
    }
    sum_heads(from, heads, stride, at, window + 2 * radius);
#pragma unroll
    for (int a = 0; a < rows; ++a) {
      if (begin + a >= grid_h) break;
      const float line = weigh(window + a, lane.weights);
      float across[2 * radius + 1];
#pragma unroll
      for (int t = 0; t <= 2 * radius; ++t) {
        across[t] = t == radius ? line : __shfl_sync(all_lanes, line, lane.around[t]);
      }
      const float value = weigh(across, lane.weights) * made_smaller;
      spoilt += value - value;
      if (lane.own) *out = value;
      out += grid_w;
    }
#pragma unroll
    for (int t = 0; t < 2 * radius; ++t) window[t] = window[t + rows];
  }
  return spoilt;
}

// The same by a warp's memory: from cells over lines to out, none of them the same.
template <int radius>
__device__ __noinline__ void smooth_floats(const float* cells, int grid_h, int grid_w,
                                           const Filter& filter, float* lines, float* out) {
  if (fits_lanes(radius, grid_h, grid_w)) {
    const LaneFilter<radius> lane(filter, grid_w);
    smooth_by_lanes<2, 1>(lane, cells, 1, 0, grid_h, grid_w, out);
    __syncwarp();
    return;
  }
  const auto weights = weights_of<radius>(filter);
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
      out[i * grid_w + j] = weigh(window, weights) * made_smaller;
    }
  }
  __syncwarp();
}

// Calls f with the radius of a filter that is applied in float32, as Radius<0> to Radius<4>.
template <int radius>
struct Radius {
  static constexpr int value = radius;
};
template <class F>
FASTGROUND_ANYWHERE auto with_radius(int radius, F&& f) {
  switch (radius) {
    case 0:
      return f(Radius<0>{});
    case 1:
      return f(Radius<1>{});
    case 2:
      return f(Radius<2>{});
    case 3:
      return f(Radius<3>{});
    default:
      return f(Radius<max_radius>{});
  }
}

// value(0) * weights[0] + value(1) * weights[1] + ..., added in this order.
template <class Value>
__device__ double weigh_in_order(const Filter& filter, Value&& value) {
  double sum = value(0) * filter.weights[0];
  for (int t = 1; t < filter.count; ++t) sum += value(t) * filter.weights[t];
  return sum;
}

// Adds a map, smoothed in float64, to `sum`, or begins it; taps are added in order. NaN unless all
// cells are finite.
static __device__ __noinline__ void add_exactly(AnyCells cells, bool first_head, int grid_h,
                                                int grid_w, Filter filter, double* lines,
                                                double* sum) {
  const int count = grid_h * grid_w;
  const int radius = filter.count / 2;
  const double factor = is_finite(sum_of(cells, count)) ? 1.0 : NAN;
  for (int i = this_lane(); i < count; i += warp_size) {
    const int row = i / grid_w - radius;
    const int column = i % grid_w;
    lines[i] = weigh_in_order(filter, [&](int t) {
      return cells[reflected(row + t, grid_h, filter.border) * grid_w + column];
    });
  }
  __syncwarp();
  for (int i = this_lane(); i < count; i += warp_size) {
    const int begin = i / grid_w * grid_w;
    const int column = i % grid_w - radius;
    const double smoothed = factor * weigh_in_order(filter, [&](int t) {
                              return lines[begin + reflected(column + t, grid_w, filter.border)];
                            });
    sum[i] = first_head ? smoothed : sum[i] + smoothed;
  }
  __syncwarp();
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
      with_narrow_type(maps.dtype, [&](auto type) {
        sum_cells(maps.map<decltype(type)>(index), heads, maps.stride, count, cells);
      });
      __syncwarp();
      with_radius(filter.count / 2, [&](auto radius) {
        smooth_floats<decltype(radius)::value>(cells, grid_h_, grid_w_, filter, cells + count,
                                               combined());
      });
      const double sum = sum_of(combined(), count);
      if (is_finite(sum)) return sum;
      __syncwarp();
    }
    for (int head = 0; head < heads; ++head) {
      add_exactly(maps.any(index + head), head == 0, grid_h_, grid_w_, filter, first_, second_);
    }
    for (int i = this_lane(); i < count; i += warp_size) {
      combined()[i] = static_cast<float>(second_[i]);
    }
    __syncwarp();
    return sum_of(combined(), count);
  }

 private:
  double* first_;   // columns weighed, then the result as float
  double* second_;  // the sum of heads in float64; else the cells and the lines as float
  int grid_h_, grid_w_;
};

// As add_exactly for all heads, of filters so small that what is weighed along columns need not be
// kept.
static __device__ __noinline__ void combine_exactly(const Maps& maps, std::int64_t index, int heads,
                                                    const Filter& filter, float* combined) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int radius = filter.count / 2;
  unsigned finite = 0;  // a bit a head
  for (int head = 0; head < heads; ++head) {
    const double sum = sum_of(maps.any(index + head), grid_h * grid_w);
    finite |= static_cast<unsigned>(is_finite(sum)) << head;
  }
  for (int i = this_lane(); i < grid_h * grid_w; i += warp_size) {
    double total = 0;
    for (int head = 0; head < heads; ++head) {
      const AnyCells cells = maps.any(index + head);
      const double weighed = weigh_in_order(filter, [&](int t) {
        const int column = reflected(i % grid_w - radius + t, grid_w, filter.border);
        return weigh_in_order(filter, [&](int u) {
          const int row = reflected(i / grid_w - radius + u, grid_h, filter.border);
          return cells[row * grid_w + column];
        });
      });
      const double smoothed = (finite >> head & 1 ? 1.0 : NAN) * weighed;
      total = head == 0 ? smoothed : total + smoothed;
    }
    combined[i] = static_cast<float>(total);
  }
}

// A warp for each of `groups` combined maps, several a block: where float32 does and each column
// has a lane.
template <class T, int radius>
__global__ void __launch_bounds__(256, 3)
    combine_by_lanes(Maps maps, std::int64_t groups, int heads, Filter filter, float* combined) {
  static_assert(max_heads <= 32);  // the bits of combine_exactly
  const LaneFilter<radius> lane(filter, maps.grid_w);
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / warp_size);
  std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (group /= warp_size; group < groups; group += warps) {
    float* to = combined + group * maps.grid_h * maps.grid_w;
    const float spoilt = smooth_by_lanes<ahead, 1>(lane, maps.map<T>(group * heads), heads,
                                                   maps.stride, maps.grid_h, maps.grid_w, to);
    if (__all_sync(all_lanes, spoilt == 0)) continue;
    __syncwarp();  // other lanes write what was written
    combine_exactly(maps, group * heads, heads, filter, to);
  }
}

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
