// The combined map of k heads: each map smoothed by a separable Gaussian, then summed.
//
// Smoothing is linear: the maps are summed first, in float32 if they are of at most that precision,
// and the sum is smoothed once. A single float32 map is read where it lies.
//
//     cells     a b c d e f        the sum. Some columns at a time go down it, the rows within
//                                  reach of the filter staying in registers.
//     lines   c b a b c d e f e d  Weighed along the columns; each line is extended to both sides
//                                  by its own reverse.
//     out       a b c d e f        Weighed along the lines.
//
// Lines are read at other places than they were written; done at once, that would wait until the
// stores have reached the cache and cost more than all arithmetic, hence a whole map lies between.
// A filter's weights are the same on both sides, so that cells at one distance are added before
// they are weighed, the farthest first: a constant map stays constant, a mirrored map gives the
// mirrored result, and the error stays below 4e-7 of the smoothed magnitudes, and 6e-8 more for
// each further head. Sub-normal numbers, below 1e-38, would lose digits at every step; therefore
// weights are taken 2^32 times as large, and only the result, made smaller again, is rounded to
// what float32 has there: by half of its smallest step at most. What becomes too large on the way
// is computed again in float64, as are float64 maps, wide or uneven filters and grids narrower than
// a vector.
#pragma once

#include "cells.hpp"
#include "filter.hpp"

namespace fastground {
namespace {

// out[j] = sum over t of lines[t * step + j] * weights[t], added from the first tap to the last.
void weigh(const double* lines, int step, const double* weights, int taps, int count, double* out) {
  constexpr int several = 8;
  int j = 0;
  for (; j + several <= count; j += several) {
    double sum[several];
    for (int c = 0; c < several; ++c) sum[c] = lines[j + c] * weights[0];
    for (int t = 1; t < taps; ++t) {
      const double* line = lines + t * step + j;
      for (int c = 0; c < several; ++c) sum[c] += line[c] * weights[t];
    }
    for (int c = 0; c < several; ++c) out[j + c] = sum[c];
  }
  for (; j < count; ++j) {
    double sum = lines[j] * weights[0];
    for (int t = 1; t < taps; ++t) sum += lines[t * step + j] * weights[t];
    out[j] = sum;
  }
}

constexpr int margin = 8;  // cells on both sides of a line

struct Smoother {
  Smoother(Scratch& scratch, int grid_h, int grid_w, int taps)
      : extended(scratch.take<double>((grid_h + taps) * grid_w)),
        line(scratch.take<double>(grid_w + taps)),
        smoothed(scratch.take<double>(grid_w)),
        total(scratch.take<double>(grid_h * grid_w)),
        buffer(scratch.take<double>((grid_h + max_heads) * grid_w)),
        sum(scratch.take<float>(grid_h * grid_w)),
        pitch(margin + (grid_w + 7) / 8 * 8 + margin),
        lines(scratch.take<float>(grid_h * pitch)) {}

  double* extended;  // the map, extended above and below
  double* line;      // one row, extended to both sides
  double* smoothed;  // one row
  double* total;
  void* buffer;
  float* sum;
  int pitch;
  float* lines;
};

// The combined map in float64, taps and heads added in order, and rounded once; NaN unless all maps
// are finite.
void combine_exactly(const MapView& maps, std::int64_t index, int heads, const Taps& taps,
                     Smoother& w, float* combined) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int radius = taps.count / 2;
  const int count = grid_h * grid_w;
  double* cells = w.extended + radius * grid_w;
  for (int head = 0; head < heads; ++head) {
    with_type(maps.dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = contiguous(maps, index + head, static_cast<T*>(w.buffer));
      for (int i = 0; i < count; ++i) cells[i] = to_double(from[i]);
    });
    const double factor = std::isfinite(sum_of(cells, count)) ? 1.0 : not_a_number;
    for (int p = 1; p <= radius; ++p) {
      const double* above = cells + reflected(-p, grid_h, taps.border) * grid_w;
      const double* below = cells + reflected(grid_h - 1 + p, grid_h, taps.border) * grid_w;
      for (int j = 0; j < grid_w; ++j) {
        cells[j - p * grid_w] = above[j];
        cells[j + (grid_h - 1 + p) * grid_w] = below[j];
      }
    }
    for (int i = 0; i < grid_h; ++i) {
      double* middle = w.line + radius;
      weigh(w.extended + i * grid_w, grid_w, taps.weights, taps.count, grid_w, middle);
      for (int p = 1; p <= radius; ++p) {
        middle[-p] = middle[reflected(-p, grid_w, taps.border)];
        middle[grid_w - 1 + p] = middle[reflected(grid_w - 1 + p, grid_w, taps.border)];
      }
      weigh(w.line, 1, taps.weights, taps.count, grid_w, w.smoothed);
      double* sum = w.total + i * grid_w;
      for (int j = 0; j < grid_w; ++j) {
        sum[j] = head == 0 ? w.smoothed[j] * factor : sum[j] + w.smoothed[j] * factor;
      }
    }
  }
  for (int i = 0; i < count; ++i) combined[i] = static_cast<float>(w.total[i]);
}

template <class V>
constexpr int cells_in = sizeof(V) / sizeof(float);

template <class V>
V mirrored(V v) {
  if constexpr (sizeof(V) == 32) {
    return __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0);
  } else {
    return __builtin_shufflevector(v, v, 3, 2, 1, 0);
  }
}

template <class V>
void store_as(float* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// Where the vector at column j lies in a row: the last one overlaps another.
template <class V>
int column_of(int j, int grid_w) {
  return j + cells_in<V> <= grid_w ? j : grid_w - cells_in<V>;
}

// The sum of the maps in raster order: of one such map of float32, where it lies.
template <class V, class T>
const float* sum_maps(const MapView& maps, std::int64_t index, int heads, Smoother& w) {
  const int grid_w = maps.grid_w;
  const T* row = static_cast<const T*>(maps.data) + index * maps.stride_map;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (heads == 1) return contiguous(maps, index, static_cast<float*>(w.buffer));
  }
  float* sum = w.sum;
  for (int i = 0; i < maps.grid_h; ++i, row += maps.stride_row, sum += grid_w) {
    const T* from = row;
    std::int64_t stride = maps.stride_map;
    if (maps.stride_column != 1) {
      T* to = static_cast<T*>(w.buffer);
      from = to;
      stride = grid_w;
      for (int head = 0; head < heads; ++head) {
        const T* cell = row + head * maps.stride_map;
        for (int j = 0; j < grid_w; ++j) *to++ = cell[j * maps.stride_column];
      }
    }
    for (int j = 0; j < grid_w; j += cells_in<V>) {
      const int at = column_of<V>(j, grid_w);
      V cells = floats<V>(from + at);
      for (int head = 1; head < heads; ++head) cells += floats<V>(from + head * stride + at);
      store_as(sum + at, cells);
    }
  }
  return w.sum;
}

template <int radius, class V>
void weigh_columns(const float* cells, int grid_h, int grid_w, Weights<radius, V> weights,
                   Border border, Smoother& w) {
  const int shared = border == Border::reflect101;
  for (int j = 0; j < grid_w; j += cells_in<V>) {
    const int at = column_of<V>(j, grid_w);
    const bool first = at == 0;
    const bool last = at == grid_w - cells_in<V>;
    const float* column = cells + at;
    float* line = w.lines + margin + at;
    V window[2 * radius + 1];
    for (int t = 0; t < 2 * radius; ++t) {
      window[t] = load_as<V>(column + reflected(t - radius, grid_h, border) * grid_w);
    }
    for (int i = radius; i < grid_h + radius; ++i, line += w.pitch) {
      const int entering = i < grid_h ? i : reflected(i, grid_h, border);
      window[2 * radius] = load_as<V>(column + entering * grid_w);
      const V v = weigh(window, weights);
      store_as(line, v);
      if (radius < cells_in<V>) {
        if (first) store_as(line - cells_in<V> + shared, mirrored(v));
        if (last) store_as(line + cells_in<V> - shared, mirrored(v));
      }
      for (int t = 0; t < 2 * radius; ++t) window[t] = window[t + 1];
    }
  }
}

// The lanes from number `by` on of two vectors after each other.
template <int by, class V>
V shifted(V here, V next) {
  if constexpr (sizeof(V) == 32) {
    return __builtin_shufflevector(here, next, by, by + 1, by + 2, by + 3, by + 4, by + 5, by + 6,
                                   by + 7);
  } else {
    return __builtin_shufflevector(here, next, by, by + 1, by + 2, by + 3);
  }
}

// The vectors around `middle`. Half are shuffled from two, as loads that cross a line of the cache
// are slow; were all shuffled, that would be slower again.
template <int radius, class V>
void look_around(const float* middle, V* window) {
  for (int t = 0; t <= radius; ++t) window[t] = load_as<V>(middle + t - radius);
  const V here = window[radius];
  const V next = load_as<V>(middle + cells_in<V>);
  if constexpr (radius >= 1) window[radius + 1] = shifted<1>(here, next);
  if constexpr (radius >= 2) window[radius + 2] = shifted<2>(here, next);
  if constexpr (radius >= 3) window[radius + 3] = shifted<3>(here, next);
  if constexpr (radius >= 4) window[radius + 4] = shifted<4>(here, next);
}

template <int radius, class V>
void weigh_lines(int grid_h, int grid_w, Weights<radius, V> weights, const Smoother& w,
                 float* out) {
  const float* line = w.lines + margin;
  for (int i = 0; i < grid_h; ++i, line += w.pitch, out += grid_w) {
    for (int j = 0; j < grid_w; j += cells_in<V>) {
      const int at = column_of<V>(j, grid_w);
      V window[2 * radius + 1];
      look_around<radius>(line + at, window);
      store_as(out + at, weigh(window, weights) * (1 / (enlarged * enlarged)));
    }
  }
}

// Where a vector is too short to hold all that is reflected.
void extend_lines(int grid_h, int grid_w, int radius, Border border, Smoother& w) {
  float* line = w.lines + margin;
  for (int i = 0; i < grid_h; ++i, line += w.pitch) {
    for (int p = 1; p <= radius; ++p) {
      line[-p] = line[reflected(-p, grid_w, border)];
      line[grid_w - 1 + p] = line[reflected(grid_w - 1 + p, grid_w, border)];
    }
  }
}

template <int radius, class V>
void combine_floats(const MapView& maps, std::int64_t index, int heads, const Taps& taps,
                    Smoother& w, float* combined) {
  const float* cells = with_type(maps.dtype, [&](auto type) -> const float* {
    using T = decltype(type);
    if constexpr (sizeof(T) == 1 || sizeof(T) == 8) {
      return nullptr;
    } else {
      return sum_maps<V, T>(maps, index, heads, w);
    }
  });
  Weights<radius, V> weights;
  for (int t = 0; t <= radius; ++t) {
    weights.at[t] = static_cast<float>(taps.weights[radius + t]) * enlarged - V{};
  }
  weigh_columns(cells, maps.grid_h, maps.grid_w, weights, taps.border, w);
  if (radius >= cells_in<V>) extend_lines(maps.grid_h, maps.grid_w, radius, taps.border, w);
  weigh_lines(maps.grid_h, maps.grid_w, weights, w, combined);
}

constexpr int wide_bytes = register_bytes > 32 ? 32 : register_bytes;  // three fit a row of 24
using Wide = VectorOf<float, wide_bytes>::type;
using Narrow = VectorOf<float, 16>::type;
static_assert(cells_in<Narrow> == least_width);

template <int radius>
void combine_floats(const MapView& maps, std::int64_t index, int heads, const Taps& taps,
                    Smoother& w, float* combined) {
  maps.grid_w < cells_in<Wide>
      ? combine_floats<radius, Narrow>(maps, index, heads, taps, w, combined)
      : combine_floats<radius, Wide>(maps, index, heads, taps, w, combined);
}

// Writes the combined map of `heads` maps from `index` on. Returns the sum of its cells, which is
// not finite if one of the maps is not, or if a cell does not fit float32.
double combine_one(const MapView& maps, std::int64_t index, int heads, const Taps& taps,
                   Smoother& w, float* combined) {
  constexpr decltype(&combine_floats<0>) combine_with[max_radius + 1] = {
      combine_floats<0>, combine_floats<1>, combine_floats<2>, combine_floats<3>,
      combine_floats<4>};
  const int count = maps.grid_h * maps.grid_w;
  if (floats_suffice(maps, heads, taps)) {
    combine_with[taps.count / 2](maps, index, heads, taps, w, combined);
    const double sum = sum_of(combined, count);
    if (std::isfinite(sum)) return sum;
  }
  combine_exactly(maps, index, heads, taps, w, combined);
  return sum_of(combined, count);
}

std::int64_t combine(const MapView& maps, int heads, const Taps& taps, void* memory,
                     float* combined) {
  Scratch scratch(memory);
  Smoother smoother(scratch, maps.grid_h, maps.grid_w, taps.count);
  std::int64_t not_finite = 0;
  for (std::int64_t index = 0; index < maps.count; index += heads) {
    not_finite += !std::isfinite(combine_one(maps, index, heads, taps, smoother, combined));
    combined += maps.grid_h * maps.grid_w;
  }
  return not_finite;
}

}  // namespace
}  // namespace fastground
