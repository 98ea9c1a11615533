// Entropies of grids beyond 32 x 32 cells, of regions weighted by their attention, and of few maps:
// a warp a map, by labelled regions.
//
// The flood of stats.cuh takes less work a map, but one lane goes through all regions of a map, one
// after another. Where maps are too few to fill the GPU, time is what a single map takes: here its
// strips are gone through at once.
#pragma once

#include "regions.cuh"
#include "stats.cuh"

namespace fastground {
namespace {

// A warp's memory.
template <int Words>
struct LargeStats {
  FASTGROUND_ANYWHERE LargeStats(Arena& arena, int grid_h, int grid_w, Weight weight)
      : regions(arena, grid_h, grid_w),
        stream(arena.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        areas(arena.take<int>(weight == Weight::area ? regions.places() : 0)),
        masses(arena.take<double>(weight == Weight::mass ? regions.places() : 0)) {}

  Regions<Words> regions;
  std::uint64_t* stream;
  int* areas;  // of each region, at the place of its first run
  double* masses;
};

template <int Words>
__device__ float entropy_by_area(LargeStats<Words>& w, const StatsCall& call) {
  const Regions<Words>& regions = w.regions;
  for (int i = this_lane(); i < regions.places(); i += warp_size) w.areas[i] = 0;
  __syncwarp();
  regions.each_run([&](int strip, int place, const Bits<Words>& run) {
    atomicAdd(&w.areas[regions.roots[place]], regions.cells_of(strip, run));
  });
  __syncwarp();
  int cells = 0;
  unsigned long long sum = 0;
  for (int i = this_lane(); i < regions.places(); i += warp_size) {
    cells += w.areas[i];
    sum += call.n_ln_n[w.areas[i]];
  }
  cells = sum_of_lanes(cells);
  sum = sum_of_lanes(sum);
  return entropy_of_areas(cells, call.n_ln_n[cells], sum, call.nothing);
}

// Masses are added up in the order of the CPU's, by one lane.
template <int Words>
__device__ float entropy_by_mass(LargeStats<Words>& w, const AnyCells& cells, double base,
                                 const StatsCall& call) {
  const Regions<Words>& regions = w.regions;
  for (int i = this_lane(); i < regions.places(); i += warp_size) w.masses[i] = 0;
  __syncwarp();
  float entropy = 0;
  if (this_lane() == 0) {
    regions.each_run_in_turn([&](int strip, int place, const Bits<Words>& run) {
      double& mass = w.masses[regions.roots[place]];
      regions.each_cell(strip, run, [&](int cell) {
        const double excess = cells[cell] - base;
        mass += excess > 0 ? excess : 0;
      });
    });
    entropy = entropy_of_masses(w.masses, regions.places(), call.nothing);
  }
  return entropy;
}

template <int Words>
__global__ void __launch_bounds__(warp_size, 16)
    stats_by_warp(StatsCall call, Weight weight, void* workspace, std::size_t bytes) {
  Arena arena(block_memory(workspace, bytes));
  const Maps& maps = call.maps;
  const int count = maps.grid_h * maps.grid_w;
  LargeStats<Words> w(arena, maps.grid_h, maps.grid_w, weight);
  for (std::int64_t index = blockIdx.x; index < maps.count; index += gridDim.x) {
    const AnyCells cells = maps.any(index);
    const double sum = sum_of(cells, count);
    const double level = level_of(cells, count, sum, call.cut);
    write_stream(count, w.stream, [&](int i) { return cells[i] > level; });
    w.regions.find(w.stream);
    const float entropy =
        weight == Weight::area
            ? entropy_by_area(w, call)
            : entropy_by_mass(w, cells, level_of(cells, count, sum, Cut::mean), call);
    if (this_lane() == 0) {
      call.entropies[index] = is_finite(sum) ? entropy : NAN;
      if (call.sums != nullptr) call.sums[index] = rounded_sum(sum);
    }
    __syncwarp();  // spare
  }
}

// Few maps of at most 32 x 32 cells, by their areas.
template <class T, int Side>
__global__ void __launch_bounds__(warp_size, 16) stats_of_few(StatsCall call) {
  constexpr int chunks = Side > 0 ? (Side * Side + warp_size - 1) / warp_size : warp_size;
  void* memory = shared_memory();
  const Maps& maps = call.maps;
  const Grid<Side> grid(maps);
  const int count = grid.cells();
  {
    Arena arena(memory);
    const LargeStats<1> w(arena, grid.h, grid.w, Weight::area);
    LaneCells<T, chunks, sizeof(T) <= 4> cells;
    cells.load(maps.map<T>(blockIdx.x), count);
    cells.arrive();
    cut_to_words<T>(cells, count, call, blockIdx.x, reinterpret_cast<std::uint32_t*>(w.stream));
  }
  __syncwarp();
  Arena arena(met_anew(memory));
  LargeStats<1> w(arena, grid.h, grid.w, Weight::area);
  w.regions.find(w.stream);
  const float entropy = entropy_by_area(w, call);
  if (this_lane() == 0) {
    const bool finite = is_finite_in(reinterpret_cast<std::uint32_t*>(w.stream), count);
    call.entropies[blockIdx.x] = finite ? entropy : NAN;
  }
}

}  // namespace
}  // namespace fastground
