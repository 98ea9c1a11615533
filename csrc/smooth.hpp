// The combined map of k heads: each map smoothed by a separable Gaussian, then summed.
#pragma once

#include "cells.hpp"

namespace fastground {
namespace {

// The cell that place `i` stands for, which may lie outside a line of `size` cells.
int reflected(int i, int size, Border border) {
  const int period = border == Border::reflect ? 2 * size : (size > 1 ? 2 * size - 2 : 1);
  i = ((i % period) + period) % period;
  const int back = border == Border::reflect ? period - 1 - i : period - i;
  return (i < back ? i : back) % size;
}

// out[j] = sum over t of lines[t * step + j] * weights[t], added from the first tap to the last.
void weigh(const double* lines, int step, const double* weights, int taps, int count, double* out) {
  constexpr int lanes = 8;
  int j = 0;
  for (; j + lanes <= count; j += lanes) {
    double sum[lanes];
    for (int lane = 0; lane < lanes; ++lane) sum[lane] = lines[j + lane] * weights[0];
    for (int t = 1; t < taps; ++t) {
      const double* line = lines + t * step + j;
      for (int lane = 0; lane < lanes; ++lane) sum[lane] += line[lane] * weights[t];
    }
    for (int lane = 0; lane < lanes; ++lane) out[j + lane] = sum[lane];
  }
  for (; j < count; ++j) {
    double sum = lines[j] * weights[0];
    for (int t = 1; t < taps; ++t) sum += lines[t * step + j] * weights[t];
    out[j] = sum;
  }
}

struct Smoother {
  Smoother(Scratch& scratch, int grid_h, int grid_w, int taps)
      : rows(scratch.take<double>((grid_h + taps) * grid_w)),
        line(scratch.take<double>(grid_w + taps)),
        smoothed(scratch.take<double>(grid_w)),
        total(scratch.take<double>(grid_h * grid_w)),
        buffer(scratch.take<double>(grid_h * grid_w)) {}

  double* rows;      // the map, extended above and below
  double* line;      // one row, extended to both sides
  double* smoothed;  // one row
  double* total;
  void* buffer;
};

// Writes the combined map of `heads` maps from `index` on, and returns whether all are finite. All
// is computed in float64, taps and heads added in order, and rounded once.
bool combine_one(const MapView& maps, std::int64_t index, int heads, const Taps& taps, Smoother& w,
                 float* combined) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int radius = taps.count / 2;
  const int count = grid_h * grid_w;
  double* cells = w.rows + radius * grid_w;
  bool all_finite = true;
  for (int head = 0; head < heads; ++head) {
    with_type(maps.dtype, [&](auto type) {
      using T = decltype(type);
      const T* from = contiguous(maps, index + head, static_cast<T*>(w.buffer));
      for (int i = 0; i < count; ++i) cells[i] = to_double(from[i]);
    });
    const bool finite = std::isfinite(sum_of(cells, count));
    all_finite = all_finite && finite;
    const double factor = finite ? 1.0 : not_a_number;
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
      weigh(w.rows + i * grid_w, grid_w, taps.weights, taps.count, grid_w, middle);
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
  return all_finite;
}

std::int64_t combine(const MapView& maps, int heads, const Taps& taps, void* memory,
                     float* combined) {
  Scratch scratch(memory);
  Smoother smoother(scratch, maps.grid_h, maps.grid_w, taps.count);
  const int cells = maps.grid_h * maps.grid_w;
  std::int64_t not_finite = 0;
  for (std::int64_t index = 0; index < maps.count; index += heads) {
    const bool finite = combine_one(maps, index, heads, taps, smoother, combined);
    not_finite += !finite || !std::isfinite(sum_of(combined, cells));  // it may overflow float32
    combined += cells;
  }
  return not_finite;
}

}  // namespace
}  // namespace fastground
