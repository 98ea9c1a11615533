// What foreground exceeds: the level in float64, and what cells are compared with.
#pragma once

#include <cmath>

#include "anywhere.hpp"
#include "map_view.hpp"

namespace fastground {
namespace {

// The largest float that is not above `level`.
FASTGROUND_ANYWHERE inline float float_below(double level) {
  const float nearest = static_cast<float>(level);
  if (nearest == 0 && level < 0) return -0x1p-149f;
  const auto bits = bit_cast<std::int32_t>(nearest);
  const std::int32_t step = bits >> 31 | 1;  // towards -infinity
  return bit_cast<float>(bits - step * (nearest > level));
}

// What cells of this type are compared with, so that cell > cut is exactly cell > level.
template <class T>
FASTGROUND_ANYWHERE float cut_of(T, double level) {
  return float_below(level);
}
FASTGROUND_ANYWHERE inline double cut_of(double, double level) { return level; }
template <class T>
using CutOf = decltype(cut_of(T{}, 0.0));

// The level that belongs to a mean.
FASTGROUND_ANYWHERE inline double level_at(double mean, Cut cut) {
  constexpr double eps = 1e-3;
  return cut == Cut::mean ? mean : (cut == Cut::mean_eps ? mean : 2 * mean) + eps;
}

// A map's attention sum: NaN if its cells are not finite.
FASTGROUND_ANYWHERE inline float rounded_sum(double sum) {
  return is_finite(sum) ? static_cast<float>(sum) : NAN;
}

}  // namespace
}  // namespace fastground
