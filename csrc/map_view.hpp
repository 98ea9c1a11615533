// The nouns of the native core: a batch of maps without ownership, and the choices of the method.
#pragma once

#include <cstdint>

namespace fastground {

enum class Dtype { boolean, float16, bfloat16, float32, float64 };

// Half-precision numbers, as their bits.
struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};

// `count` maps of grid_h x grid_w cells; strides count elements and may be 0 or negative.
struct MapView {
  const void* data;
  Dtype dtype;
  std::int64_t count;
  int grid_h;
  int grid_w;
  std::int64_t stride_map;
  std::int64_t stride_row;
  std::int64_t stride_column;
};

// What foreground exceeds: the mean, the mean + 1e-3, twice the mean + 1e-3.
enum class Cut { mean, mean_eps, two_mean_eps };

// What a region weighs in the entropy: its cells, or its attention above the mean.
enum class Weight { area, mass };

// The entropy of a map without foreground.
enum class Empty { inf, zero };

// How a line goes on: reflect101 is dcb|abcd|cba, reflect is dcba|abcd|dcba; both repeat.
enum class Border { reflect101, reflect };

// Which region is kept: by hull area, by cells, by sum, or all foreground as one.
enum class Keep { hull, component, mass, all };

// A separable filter: `count` weights, an odd number, centred.
struct Taps {
  const double* weights;
  int count;
  Border border;
};

// One of each combined map: a row of seven numbers, zeros where nothing is found.
struct Box {
  float x1, y1, x2, y2;  // in cells, half-open
  float area;            // of the hull, or the number of cells; 1 or more where something is found
  float mass;            // share of the map's sum
  float score;           // mean inside over mean outside, +inf if that is 0 or nothing lies outside
};
static_assert(sizeof(Box) == 7 * sizeof(float));

}  // namespace fastground
