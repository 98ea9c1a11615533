// The sum and the spatial entropy of each map.
#pragma once

#include "cells.hpp"
#include "foreground.hpp"

namespace fastground {
namespace {

double n_ln_n(int n) { return n * __builtin_log(n); }

// ln N - (sum n ln n) / N, exactly 0 for one region.
double entropy_of_areas(const std::int32_t* areas, int count) {
  if (count == 1) return 0;
  int total = 0;
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    total += areas[i];
    sum += n_ln_n(areas[i]);
  }
  const double entropy = (n_ln_n(total) - sum) / total;
  return entropy > 0 ? entropy : 0;
}

double entropy_of_masses(const double* masses, int count, double empty) {
  double total = 0;
  for (int i = 0; i < count; ++i) total += masses[i];
  if (total == 0) return empty;
  double entropy = 0;
  for (int i = 0; i < count; ++i) {
    const double p = masses[i] / total;
    if (p > 0) entropy -= p * __builtin_log(p);
  }
  return entropy > 0 ? entropy : 0;
}

std::int64_t head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, void* memory,
                        float* sums, float* entropies) {
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  double* masses = scratch.take<double>(maps.grid_h * maps.grid_w);
  const int count = maps.grid_h * maps.grid_w;
  const double nothing = empty == Empty::inf ? std::numeric_limits<double>::infinity() : 0.0;
  return with_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    std::int64_t not_finite = 0;
    if constexpr (sizeof(T) > 1) {
      for (std::int64_t index = 0; index < maps.count; ++index) {
        const T* cells = contiguous(maps, index, static_cast<T*>(one.cells));
        const double sum = sum_of(cells, count);
        const bool finite = std::isfinite(static_cast<float>(sum));
        not_finite += !finite;
        if (sums != nullptr)
          sums[index] = static_cast<float>(std::isfinite(sum) ? sum : not_a_number);
        if (entropies == nullptr) continue;
        double entropy = not_a_number;
        if (std::isfinite(sum)) {
          cut_cells(cells, count, level_of(cells, count, sum, cut), one.stream);
          const int regions = one.components.find(one.stream);
          if (regions == 0) {
            entropy = nothing;
          } else if (weight == Weight::area) {
            entropy = entropy_of_areas(one.components.areas(), regions);
          } else {
            for (int i = 0; i < regions; ++i) masses[i] = 0;
            one.components.add_excess(cells, level_of(cells, count, sum, Cut::mean), masses);
            entropy = entropy_of_masses(masses, regions, nothing);
          }
        }
        entropies[index] = static_cast<float>(entropy);
      }
    }
    return not_finite;
  });
}

}  // namespace
}  // namespace fastground
