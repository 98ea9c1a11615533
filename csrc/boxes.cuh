// The region of a combined map that is kept, its tight box, and what supports it: a warp a map, as
// boxes.hpp does it on the CPU.
//
// Nothing but the combined map outlives its making, so that the rest is found in the same memory.
#pragma once

#include "combine.cuh"
#include "foreground.cuh"
#include "hull.cuh"

namespace fastground {
namespace {

struct BoxesCall {
  Maps maps;
  int heads;
  Filter filter;
  Keep keep;
  Maps valid;  // of boolean cells; without data all cells are valid
  Box* out;
  bool* found;

  __device__ const std::uint8_t* valid_of(std::int64_t group) const {
    return valid.data == nullptr ? nullptr : valid.map<std::uint8_t>(group);
  }

  __device__ void answer(std::int64_t group, const Box& box) const {
    if (this_lane() == 0) {
      out[group] = box;
      found[group] = box.area > 0;  // a region has one cell at least
    }
    __syncwarp();
  }
};

// A warp's memory.
template <int Words>
struct BoxesMemory {
  FASTGROUND_ANYWHERE BoxesMemory(Arena& arena, int grid_h, int grid_w)
      : combiner(arena, grid_h, grid_w),
        regions((arena.back_to(combiner.kept_bytes()), arena), grid_h, grid_w),
        hull(arena, grid_h),
        stream(arena.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        kept(arena.take<std::uint64_t>(2 * regions.strips * Words)),
        areas(arena.take<int>(regions.places())),
        firsts(arena.take<int>(regions.places())),
        lefts(arena.take<int>(regions.places())),
        rights(arena.take<int>(regions.places())),
        bottoms(arena.take<int>(regions.places())),
        sizes(arena.take<double>(regions.places())),
        sums(arena.take<double>(regions.places())) {}

  Combiner combiner;
  Regions<Words> regions;
  WarpHull hull;
  std::uint64_t* stream;  // the foreground
  std::uint64_t* kept;    // rows of the kept region
  // Of each region, at the place of its first run:
  int* areas;
  int* firsts;  // the first cell
  int* lefts;   // the tight box
  int* rights;
  int* bottoms;
  double* sizes;  // what the largest is chosen by
  double* sums;
};

struct KeptRegion {
  int left, top, right, bottom;
  double area;
};

template <int Words>
__device__ void measure(const BoxesMemory<Words>& w) {
  const Regions<Words>& regions = w.regions;
  for (int i = this_lane(); i < regions.places(); i += warp_size) {
    w.areas[i] = w.rights[i] = w.bottoms[i] = 0;
    w.lefts[i] = regions.grid_w;
    w.sizes[i] = -INFINITY;
  }
  find_firsts(regions, w.firsts);  // orders what was written here, too
  regions.each_run([&](int strip, int place, const Bits<Words>& run) {
    const int root = regions.roots[place];
    const bool in_lower = (run & regions.row(2 * strip + 1)).any();
    atomicAdd(&w.areas[root], regions.cells_of(strip, run));
    atomicMin(&w.lefts[root], run.first());
    atomicMax(&w.rights[root], run.last() + 1);
    atomicMax(&w.bottoms[root], 2 * strip + 1 + in_lower);
  });
  __syncwarp();
}

// The sum of each region's cells, added in the order of the CPU's, by one lane.
template <int Words>
__device__ void add_cells(const BoxesMemory<Words>& w, const float* cells) {
  const Regions<Words>& regions = w.regions;
  for (int i = this_lane(); i < regions.places(); i += warp_size) w.sums[i] = 0;
  __syncwarp();
  if (this_lane() == 0) {
    regions.each_run_in_turn([&](int strip, int place, const Bits<Words>& run) {
      double& sum = w.sums[regions.roots[place]];
      regions.each_cell(strip, run, [&](int cell) { sum += cells[cell]; });
    });
  }
  __syncwarp();
}

// Calls f(place) in all lanes together for the first runs' places of all regions, in order.
template <int Words, class F>
__device__ void each_region(const Regions<Words>& regions, F&& f) {
  for (int begin = 0; begin < regions.places(); begin += warp_size) {
    const int i = begin + this_lane();
    unsigned found = __ballot_sync(all_lanes, i < regions.places() && regions.roots[i] == i);
    for (; found != 0; found &= found - 1) f(begin + lowest_bit(found));
  }
}

// Writes the rows of a region to w.kept.
template <int Words>
__device__ void write_rows(const BoxesMemory<Words>& w, int region) {
  const Regions<Words>& regions = w.regions;
  __syncwarp();  // spare
  for (int i = this_lane(); i < 2 * regions.strips; i += warp_size) {
    Bits<Words>{}.write(&w.kept[i * Words]);
  }
  __syncwarp();
  regions.each_run([&](int strip, int place, const Bits<Words>& run) {
    if (regions.roots[place] != region) return;
    for (int i = 2 * strip; i < 2 * strip + 2; ++i) {
      std::uint64_t* to = &w.kept[i * Words];
      (Bits<Words>::read(to) | (run & regions.row(i))).write(to);
    }
  });
  __syncwarp();
}

// Twice the area of a region's hull, which stays in w.hull, as its rows stay in w.kept.
template <int Words>
__device__ int hull_of(BoxesMemory<Words>& w, int region) {
  write_rows(w, region);
  return w.hull.template enclose<Words>(w.kept, w.firsts[region] / w.regions.grid_w,
                                        w.bottoms[region]);
}

struct LargestPlace {
  double size;
  int place;   // the last of them
  int equals;  // how many are as large
};

__device__ inline LargestPlace largest_of(const double* sizes, int places) {
  double size = -INFINITY;
  for (int i = this_lane(); i < places; i += warp_size) size = sizes[i] > size ? sizes[i] : size;
  size = largest_of_lanes(size);
  int place = -1;
  int equals = 0;
  for (int i = this_lane(); i < places; i += warp_size) {
    if (sizes[i] != size) continue;
    place = i;
    ++equals;
  }
  return {size, largest_of_lanes(place), sum_of_lanes(equals)};
}

// Makes hull areas of the sizes, but where even the box would not be enough for the largest.
// Returns the region whose hull was taken last.
template <int Words>
__device__ int take_hulls(BoxesMemory<Words>& w) {
  // The one of most cells first.
  const LargestPlace most = largest_of(w.sizes, w.regions.places());
  __syncwarp();  // spare
  for (int i = this_lane(); i < w.regions.places(); i += warp_size) w.sizes[i] = -INFINITY;
  double largest = 0;
  int last = -1;
  const auto take = [&](int region) {
    last = region;
    const double size = 0.5 * hull_of(w, region);
    if (this_lane() == 0) w.sizes[region] = size;
    if (size > largest) largest = size;
  };
  take(most.place);
  each_region(w.regions, [&](int region) {
    const int height = w.bottoms[region] - w.firsts[region] / w.regions.grid_w;
    const int width = w.rights[region] - w.lefts[region];
    if (region != most.place && height * width >= largest) take(region);
  });
  __syncwarp();
  return last;
}

// Finds the largest of the regions and writes its cells to w.kept.
template <int Words>
__device__ KeptRegion keep_largest(BoxesMemory<Words>& w, const float* cells, Keep keep) {
  const Regions<Words>& regions = w.regions;
  measure(w);
  if (keep == Keep::mass) add_cells(w, cells);
  for (int i = this_lane(); i < regions.places(); i += warp_size) {
    if (regions.roots[i] == i) w.sizes[i] = keep == Keep::mass ? w.sums[i] : w.areas[i];
  }
  __syncwarp();
  const int taken = keep == Keep::hull ? take_hulls(w) : -1;
  const LargestPlace largest = largest_of(w.sizes, regions.places());
  int best = largest.place;
  if (largest.equals > 1) {
    if (keep != Keep::mass) add_cells(w, cells);
    each_region(regions, [&](int region) {
      if (w.sizes[region] != largest.size) return;
      if (w.sums[region] > w.sums[best] ||
          (w.sums[region] == w.sums[best] && w.firsts[region] < w.firsts[best])) {
        best = region;
      }
    });
  }
  const int top = w.firsts[best] / regions.grid_w;
  KeptRegion kept = {w.lefts[best], top, w.rights[best], w.bottoms[best], 1.0 * w.areas[best]};
  if (keep == Keep::hull) {
    if (taken != best) hull_of(w, best);  // else it is there still
    kept.area = w.sizes[best];
    w.hull.template fill<Words>(w.kept, kept.top, kept.bottom);
  } else {
    write_rows(w, best);
  }
  return kept;
}

// All foreground as one region.
template <int Words>
__device__ KeptRegion keep_all(BoxesMemory<Words>& w) {
  const int grid_h = w.regions.grid_h;
  int left = 64 * Words;
  int top = grid_h;
  int right = 0;
  int bottom = 0;
  int cells = 0;
  __syncwarp();  // spare
  for (int i = this_lane(); i < grid_h; i += warp_size) {
    const auto row = row_of<Words>(w.stream, i, w.regions.grid_w);
    row.write(&w.kept[i * Words]);
    if (!row.any()) continue;
    left = row.first() < left ? row.first() : left;
    top = i < top ? i : top;
    right = row.last() + 1 > right ? row.last() + 1 : right;
    bottom = i + 1;
    cells += row.count();
  }
  __syncwarp();
  return {least_of_lanes(left), least_of_lanes(top), largest_of_lanes(right),
          largest_of_lanes(bottom), 1.0 * sum_of_lanes(cells)};
}

// 32 bits of the stream that rows make, from cell 32 * w on.
template <int Words>
__device__ std::uint32_t stream_word(const std::uint64_t* rows, int grid_h, int grid_w, int w) {
  std::uint32_t bits = 0;
  for (int i = 32 * w / grid_w; i < grid_h && i * grid_w < 32 * (w + 1); ++i) {
    const std::uint64_t* row = &rows[i * Words];
    const int column = 32 * w - i * grid_w;  // where the word begins; before the row if negative
    const int at = column / 64;
    if (column < 0) {
      bits |= static_cast<std::uint32_t>(row[0] << -column);
    } else {
      bits |= static_cast<std::uint32_t>(row[at] >> column % 64);
      if (column % 64 > 32 && at + 1 < Words) {
        bits |= static_cast<std::uint32_t>(row[at + 1] << (64 - column % 64));
      }
    }
  }
  return bits;
}

// The box of the map w.combiner.combined(), whose cells sum to `all`.
template <int Words>
__device__ Box box_of(BoxesMemory<Words>& w, double all, const BoxesCall& call,
                      const std::uint8_t* valid) {
  const int count = w.regions.grid_h * w.regions.grid_w;
  const float* cells = w.combiner.combined();
  if (!is_finite(all)) return {0, 0, 0, 0, 0, NAN, NAN};
  const auto counts = [&](int i) { return valid == nullptr || valid[i] != 0; };
  int num_valid = count;
  double sum = all;
  if (valid != nullptr) {
    num_valid = 0;
    for (int i = this_lane(); i < count; i += warp_size) num_valid += counts(i);
    num_valid = sum_of_lanes(num_valid);
    if (num_valid == 0) return {};
    sum = sum_over(count, [&](int i) { return counts(i) ? static_cast<double>(cells[i]) : 0.0; });
  }
  const float cut = float_below(mean_of(cells, count, sum / num_valid, counts));
  bool any = false;
  write_stream(count, w.stream, [&](int i) {
    const bool above = counts(i) && cells[i] > cut;
    any |= above;
    return above;
  });
  if (!__any_sync(all_lanes, any)) return {};
  KeptRegion kept;
  if (call.keep == Keep::all) {
    kept = keep_all(w);
  } else {
    w.regions.find(w.stream);
    kept = keep_largest(w, cells, call.keep);
  }
  auto* stream = reinterpret_cast<std::uint32_t*>(w.stream);  // of what is kept
  const int chunks = (count + warp_size - 1) / warp_size;
  for (int c = this_lane(); c < chunks; c += warp_size) {
    stream[c] = stream_word<Words>(w.kept, w.regions.grid_h, w.regions.grid_w, c);
  }
  __syncwarp();
  int inside = 0;
  double inside_sum = 0;
  double outside_sum = 0;
  for (int c = 0, i = this_lane(); i < count; ++c, i += warp_size) {
    const bool is_kept = (stream[c] >> this_lane() & 1) != 0;
    const bool is_valid = counts(i);
    const double cell = cells[i];
    inside += is_valid && is_kept;
    inside_sum += is_valid && is_kept ? cell : 0.0;
    outside_sum += is_valid && !is_kept ? cell : 0.0;
  }
  inside = sum_of_lanes(inside);
  inside_sum = sum_of_lanes(inside_sum);
  outside_sum = sum_of_lanes(outside_sum);
  const int outside = num_valid - inside;
  const double score = outside == 0 ? INFINITY : (inside_sum / inside) / (outside_sum / outside);
  return {static_cast<float>(kept.left),  static_cast<float>(kept.top),
          static_cast<float>(kept.right), static_cast<float>(kept.bottom),
          static_cast<float>(kept.area),  static_cast<float>(inside_sum / sum),
          static_cast<float>(score)};
}

template <int Words>
__global__ void __launch_bounds__(warp_size, 16)
    boxes_by_warp(BoxesCall call, void* workspace, std::size_t bytes) {
  void* memory = block_memory(workspace, bytes);
  const std::int64_t groups = call.maps.count / call.heads;
  for (std::int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    Arena for_map(memory);
    const Combiner combiner(for_map, call.maps.grid_h, call.maps.grid_w);
    const double all = combiner.combine(call.maps, group * call.heads, call.heads, call.filter);
    Arena arena(met_anew(memory));
    BoxesMemory<Words> w(arena, call.maps.grid_h, call.maps.grid_w);
    call.answer(group, box_of(w, all, call, call.valid_of(group)));
  }
}

}  // namespace
}  // namespace fastground
