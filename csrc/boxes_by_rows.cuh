// As boxes.cuh, where float32 does and rows.cuh: a warp a map, which holds in registers all but the
// cells of the combined map. Of what a bit tells of each cell,
//
//     stream   lane w has the cells [32 w, 32 w + 32)
//     rows     lane i has row i
#pragma once

#include "boxes.cuh"
#include "rows.cuh"

namespace fastground {
namespace {

// Of the only filters that this is compiled for, those of a recipe which does not say otherwise.
constexpr int rows_radius = 3;

FASTGROUND_ANYWHERE inline bool fits_rows(const Filter& filter, int grid_h, int grid_w) {
  return filter.by_floats && filter.count == 2 * rows_radius + 1 &&
         fits_lanes(rows_radius, grid_h, grid_w) && grid_h < warp_size;
}

struct RowsKept {
  KeptRegion box;
  std::uint32_t row;  // this lane's
};

// The largest region of a foreground of which each lane has a row.
__device__ inline RowsKept keep_rows(const RowsMemory& w, std::uint32_t foreground, int grid_w,
                                     Keep keep) {
  const StripsOfRows strips(foreground);
  std::uint32_t rest = keep == Keep::all ? 0 : strips.both;
  RowsKept best = {{}, 0};
  double size = -INFINITY;
  std::uint32_t best_region = 0;
  int best_first = 0;
  const auto box_of_row = [&](std::uint32_t row) -> KeptRegion {
    const unsigned rows = __ballot_sync(all_lanes, row != 0);
    const std::uint32_t columns = __reduce_or_sync(all_lanes, row);
    return {first_bit(columns), first_bit(rows), last_bit(columns) + 1, last_bit(rows) + 1, 0};
  };
  const auto cells_of = [](std::uint32_t row) {
    return __reduce_add_sync(all_lanes, static_cast<int>(__popc(row)));
  };
  if (keep == Keep::all) {
    best = {box_of_row(foreground), foreground};
    best.box.area = cells_of(foreground);
  }
  while (true) {
    // From the fullest strip on: the largest region is soon found, and from its middle.
    const unsigned fullest =
        __reduce_max_sync(all_lanes, __popc(rest) << 5 | static_cast<unsigned>(this_lane()));
    if (fullest < 32) break;
    const bool begins = this_lane() == static_cast<int>(fullest & 31);
    const std::uint32_t region = strips.flood(begins ? rest & (~rest + 1) : 0);
    rest &= ~region;
    const std::uint32_t row = foreground & from_lane(region, this_lane() / 2);
    KeptRegion box = box_of_row(row);
    const int height = box.bottom - box.top;
    std::uint32_t kept = row;
    double own;
    if (keep == Keep::hull) {
      if (height * (box.right - box.left) < size) continue;
      const HullOfRows hull(w, row, height);
      box.area = own = 0.5 * hull.twice_area();
      if (own >= size) kept = hull.filled(box.top, box.bottom);
    } else {
      box.area = own = cells_of(row);
      if (keep == Keep::mass) own = strips.sum_of_cells(region, w.cells, grid_w);
    }
    const int first = box.top * grid_w + first_bit(from_lane(row, box.top));
    bool better = own > size;
    if (own == size) {
      const double sum = strips.sum_of_cells(region, w.cells, grid_w);
      const double other = strips.sum_of_cells(best_region, w.cells, grid_w);
      better = sum > other || (sum == other && first < best_first);
    }
    if (!better) continue;
    best = {box, kept};
    size = own;
    best_region = region;
    best_first = first;
  }
  return best;
}

// sum_of, with a count that may be known.
__device__ inline double sum_by_rows(const float* cells, int count) {
  double sum = 0;
#pragma unroll
  for (int c = 0; c * warp_size < count; ++c) {
    const int i = c * warp_size + this_lane();
    if (i < count) sum += cells[i];
  }
  return sum_of_lanes(sum);
}

// The box of the map w.cells, whose cells sum to `all`.
template <int Side>
__device__ Box box_by_rows(const RowsMemory& w, double all, const BoxesCall& call,
                           const std::uint8_t* valid) {
  const int grid_h = Side > 0 ? Side : call.maps.grid_h;
  const int grid_w = Side > 0 ? Side : call.maps.grid_w;
  const int count = grid_h * grid_w;
  const int lane = this_lane();
  const float* cells = w.cells;
  if (!is_finite(all)) return {0, 0, 0, 0, 0, NAN, NAN};
  // This lane's word of the stream of the cells i of which is_set(i).
  const auto word_of = [&](auto is_set) {
    std::uint32_t word = 0;
#pragma unroll
    for (int c = 0; c * warp_size < count; ++c) {
      const int i = c * warp_size + lane;
      const std::uint32_t bits = __ballot_sync(all_lanes, i < count && is_set(i));
      if (lane == c) word = bits;
    }
    return word;
  };
  int num_valid = count;
  double sum = all;
  std::uint32_t counted = static_cast<std::uint32_t>(bits_below(count - lane * warp_size));
  if (valid != nullptr) {
    counted = word_of([&](int i) { return valid[i] != 0; });
    num_valid = __reduce_add_sync(all_lanes, static_cast<int>(__popc(counted)));
    if (num_valid == 0) return {};
    sum =
        sum_over(count, [&](int i) { return valid[i] != 0 ? static_cast<double>(cells[i]) : 0.0; });
  }
  float cut = float_below(sum / num_valid);
  const auto above = [&](int i) { return cells[i] > cut; };
  std::uint32_t set = counted & word_of(above);
  if (!__any_sync(all_lanes, set != counted)) {  // then the least cell is the cut: see mean_of
    float least = INFINITY;
    for (int i = lane; i < count; i += warp_size) {
      if ((valid == nullptr || valid[i] != 0) && cells[i] < least) least = cells[i];
    }
    cut = least_of_lanes(least);
    set = counted & word_of(above);
  }
  if (!__any_sync(all_lanes, set != 0)) return {};
  const int at = lane * grid_w;
  const std::uint32_t low = from_lane(set, at / 32 & 31) >> at % 32;
  const std::uint32_t high = from_lane(set, (at / 32 + 1) & 31) << 1 << (31 - at % 32);
  const auto in_row = static_cast<std::uint32_t>(bits_below(grid_w));
  const std::uint32_t foreground = lane < grid_h ? (low | high) & in_row : 0;
  const RowsKept kept = keep_rows(w, foreground, grid_w, call.keep);
  std::uint32_t inner = 0;  // the stream of what is kept
#pragma unroll
  for (int k = 0; k <= (31 + grid_w - 1) / grid_w; ++k) {
    const int row = 32 * lane / grid_w + k;
    const std::uint32_t bits = from_lane(kept.row, row < warp_size ? row : warp_size - 1);
    const int to = row * grid_w - 32 * lane;  // the place of its first cell in the word
    if (row < grid_h && to < 32) inner |= to < 0 ? bits >> -to : bits << to;
  }
  if (valid != nullptr) {  // what does not count is 0 from here on
    inner &= counted;
    __syncwarp();  // spare
    for (int i = lane; i < count; i += warp_size) {
      if (valid[i] == 0) w.cells[i] = 0;
    }
  }
  double inside_sum = 0;
  double outside_sum = 0;
#pragma unroll
  for (int c = 0; c * warp_size < count; ++c) {
    const int i = c * warp_size + lane;
    const bool is_inside = (from_lane(inner, c) >> lane & 1) != 0;
    const float cell = i < count ? cells[i] : 0;
    inside_sum += is_inside ? cell : 0.0f;  // to add 0 changes no sum that began with it
    outside_sum += is_inside ? 0.0f : cell;
  }
  const int inside = __reduce_add_sync(all_lanes, static_cast<int>(__popc(inner)));
  inside_sum = sum_of_lanes(inside_sum);
  outside_sum = sum_of_lanes(outside_sum);
  const int outside = num_valid - inside;
  const double score = outside == 0 ? INFINITY : (inside_sum / inside) / (outside_sum / outside);
  return {static_cast<float>(kept.box.left),  static_cast<float>(kept.box.top),
          static_cast<float>(kept.box.right), static_cast<float>(kept.box.bottom),
          static_cast<float>(kept.box.area),  static_cast<float>(inside_sum / sum),
          static_cast<float>(score)};
}

// A warp for each of `groups` combined maps, several a block. Side is that of a square grid, or 0.
template <class T, int Side>
__global__ void __launch_bounds__(256, Side > 0 ? 3 : 2)
    boxes_by_rows(BoxesCall call, std::int64_t groups, std::size_t bytes) {
  const int grid_h = Side > 0 ? Side : call.maps.grid_h;
  const int grid_w = Side > 0 ? Side : call.maps.grid_w;
  const int warps_here = static_cast<int>(blockDim.x) / warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  Arena arena(static_cast<std::byte*>(shared_memory()) + warp * bytes);
  const RowsMemory w(arena, grid_h, grid_w);
  w.begin();
  for (std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * warps_here + warp;
       group < groups; group += static_cast<std::int64_t>(gridDim.x) * warps_here) {
    const std::int64_t index = group * call.heads;
    Filter filter = call.filter;
    filter.weights = met_anew(filter.weights);
    const LaneFilter<rows_radius> lane(filter, met_anew(grid_w));
    smooth_by_lanes<ahead, Side / ahead + 1>(lane, call.maps.map<T>(index), call.heads,
                                             call.maps.stride, grid_h, grid_w, w.cells);
    __syncwarp();
    double all = sum_by_rows(w.cells, grid_h * grid_w);
    if (!is_finite(all)) {
      __syncwarp();  // spare
      combine_exactly(call.maps, index, call.heads, call.filter, w.cells);
      __syncwarp();
      all = sum_by_rows(w.cells, grid_h * grid_w);
    }
    call.answer(group, box_by_rows<Side>(w, all, call, call.valid_of(group)));
  }
}

}  // namespace
}  // namespace fastground
