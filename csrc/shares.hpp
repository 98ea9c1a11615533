// The entropy of a map from what its regions hold.
#pragma once

#include <cmath>

#include "anywhere.hpp"
#include "fixed_point.hpp"

namespace fastground {
namespace {

// From the number of foreground cells, its own n ln n, and the sum of n ln n over the regions.
FASTGROUND_ANYWHERE inline float entropy_of_areas(int cells, std::uint64_t all, std::uint64_t sum,
                                                  float nothing) {
  if (cells == 0) return nothing;
  const std::uint64_t rest = all > sum ? all - sum : 0;  // each is rounded, and may be off
  return static_cast<float>(static_cast<double>(rest) * fixed_point_unit / cells);
}

// From the mass of each region, at least 0.
FASTGROUND_ANYWHERE inline float entropy_of_masses(const double* masses, int regions,
                                                   float nothing) {
  double total = 0;
  for (int i = 0; i < regions; ++i) total += masses[i];
  if (total == 0) return nothing;
  if (!is_finite(total)) return NAN;
  double entropy = 0;
  for (int i = 0; i < regions; ++i) {
    const double p = masses[i] / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  return static_cast<float>(entropy > 0 ? entropy : 0);
}

}  // namespace
}  // namespace fastground
