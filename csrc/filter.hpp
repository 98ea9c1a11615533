// How a filter meets the edge of a grid, and when float32 will do for it.
#pragma once

#include "anywhere.hpp"
#include "map_view.hpp"

namespace fastground {
namespace {

// The cell that place `i` stands for, which may lie outside a line of `size` cells.
FASTGROUND_ANYWHERE inline int reflected(int i, int size, Border border) {
  const int shared = border == Border::reflect101;
  const int once = i < 0 ? shared - 1 - i : (i < size ? i : 2 * size - 1 - shared - i);
  if (once >= 0 && once < size) return once;
  const int period = size > 1 ? 2 * (size - shared) : 1;
  i = ((i % period) + period) % period;
  const int back = period - (1 - shared) - i;
  return (i < back ? i : back) % size;
}

constexpr int max_radius = 4;  // of the filters that are applied in float32
constexpr int max_heads = 16;
constexpr int least_width = 4;
constexpr double least_weight = 1e-30;
constexpr float enlarged = 0x1p32f;  // by a power of two nothing is rounded

// The weights of the cells at each distance, enlarged, held in registers.
template <int radius, class V>
struct Weights {
  V at[radius + 1];
};

// window[radius] and its neighbours on both sides.
template <int radius, class V>
FASTGROUND_ANYWHERE V weigh(const V* window, const Weights<radius, V>& weights) {
  const V centre = window[radius] * weights.at[0];
  if constexpr (radius == 0) return centre;
  V sum = (window[0] + window[2 * radius]) * weights.at[radius];
  for (int t = radius - 1; t > 0; --t) {
    sum += (window[radius - t] + window[radius + t]) * weights.at[t];
  }
  return sum + centre;
}

// Whether float32 will do, unless the result turns out too large for it.
inline bool floats_suffice(const MapView& maps, int heads, const Taps& taps) {
  if (maps.dtype == Dtype::float64 || maps.dtype == Dtype::boolean || heads > max_heads ||
      maps.grid_w < least_width || taps.count > 2 * max_radius + 1) {
    return false;
  }
  for (int t = 0; t < taps.count; ++t) {
    const double weight = taps.weights[t];
    if (weight != taps.weights[taps.count - 1 - t]) return false;
    if (weight != 0 && __builtin_fabs(weight) < least_weight) return false;
  }
  return true;
}

}  // namespace
}  // namespace fastground
