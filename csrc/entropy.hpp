// The sum and the spatial entropy of each map.
//
// Over regions of n cells, N in all, -sum p ln p is ln N - (sum n ln n) / N: whole numbers, looked
// up and added in fixed point, so that neither the order of regions nor the instruction set matters
// and one region gives exactly 0. Which cells a region has is not asked; its area alone is, and
// that the flood finds for many maps at once. Two cases go map by map, with labelled regions
// instead: grids wider than 64, and regions weighted by their attention.
#pragma once

#include "block.hpp"
#include "cells.hpp"
#include "foreground.hpp"
#include "shares.hpp"

namespace fastground {
namespace {

float entropy_of_areas(const std::int32_t* areas, int regions, float nothing) {
  int cells = 0;
  std::uint64_t sum = 0;
  for (int i = 0; i < regions; ++i) {
    cells += areas[i];
    sum += n_ln_n(areas[i]);
  }
  return entropy_of_areas(cells, n_ln_n(cells), sum, nothing);
}

template <class Word, class T>
std::int64_t head_stats_by_lanes(const MapView& maps, Cut cut, float nothing, void* memory,
                                 float* sums, float* entropies) {
  Scratch scratch(memory);
  Block<Word> block(scratch, maps.grid_h, maps.grid_w);
  std::int64_t not_finite = 0;
  for (std::int64_t begin = 0; begin < maps.count; begin += Block<Word>::maps) {
    const int size = block.size_of(maps.count - begin);
    not_finite += sum_and_cut<Word, T>(maps, begin, size, cut, block, sums);
    count_cells(block, size);
    split_rows(block, size);
    prune(block, size);
    block.flood.run(size, block.sums);
    for (int m = 0; m < size; ++m) {
      const int cells = static_cast<int>(block.foreground[m]);
      const float entropy = entropy_of_areas(cells, n_ln_n(cells), block.sums[m], nothing);
      entropies[begin + m] = block.finite[m] ? entropy : NAN;
    }
  }
  return not_finite;
}

// Working memory for one map at a time, its regions labelled.
struct OneEntropy {
  OneEntropy(Scratch& scratch, int grid_h, int grid_w)
      : map(scratch, grid_h, grid_w), masses(scratch.take<double>(grid_h * grid_w)) {}

  template <class T>
  float operator()(const T* cells, int count, double sum, Weight weight, Cut cut, float nothing) {
    if (!std::isfinite(sum)) return NAN;
    const double level = level_of(cells, count, sum, cut);
    cut_cells(cells, count, cut_of(T{}, level), map.stream);
    const int regions = map.components.find(map.stream);
    if (weight == Weight::area) return entropy_of_areas(map.components.areas(), regions, nothing);
    for (int i = 0; i < regions; ++i) masses[i] = 0;
    map.components.add_excess(cells, level_of(cells, count, sum, Cut::mean), masses);
    return entropy_of_masses(masses, regions, nothing);
  }

  OneMap map;
  double* masses;  // of each region
};

template <class T>
std::int64_t head_stats_one_by_one(const MapView& maps, Weight weight, Cut cut, float nothing,
                                   void* memory, float* sums, float* entropies) {
  Scratch scratch(memory);
  OneEntropy entropy_of(scratch, maps.grid_h, maps.grid_w);
  const int count = maps.grid_h * maps.grid_w;
  std::int64_t not_finite = 0;
  for (std::int64_t index = 0; index < maps.count; ++index) {
    const T* cells = contiguous(maps, index, static_cast<T*>(entropy_of.map.cells));
    const double sum = sum_of(cells, count);
    const float rounded = rounded_sum(sum);
    not_finite += !std::isfinite(rounded);
    if (sums != nullptr) sums[index] = rounded;
    if (entropies == nullptr) continue;
    entropies[index] = entropy_of(cells, count, sum, weight, cut, nothing);
  }
  return not_finite;
}

std::int64_t head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, void* memory,
                        float* sums, float* entropies) {
  const float nothing = empty == Empty::inf ? INFINITY : 0.0f;
  return with_number_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int worth_turning = 3;  // fewer maps than that are faster one by one
    if (entropies == nullptr || weight == Weight::mass || maps.grid_w > 64 ||
        maps.count < worth_turning) {
      return head_stats_one_by_one<T>(maps, weight, cut, nothing, memory, sums, entropies);
    }
    return maps.grid_w <= 32
               ? head_stats_by_lanes<std::uint32_t, T>(maps, cut, nothing, memory, sums, entropies)
               : head_stats_by_lanes<std::uint64_t, T>(maps, cut, nothing, memory, sums, entropies);
  });
}

}  // namespace
}  // namespace fastground
