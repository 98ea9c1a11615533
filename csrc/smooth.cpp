#include "smooth.hpp"

#include <algorithm>
#include <cmath>

namespace fastground {
namespace {

// The cell that place `i` stands for, which may lie outside a line of `size` cells.
int reflected(int i, int size, Border border) {
  const int period = border == Border::reflect ? 2 * size : std::max(2 * size - 2, 1);
  i = ((i % period) + period) % period;
  return std::min(i, border == Border::reflect ? period - 1 - i : period - i) % size;
}

// Adds line * weight to out, or writes it if it is the first of its sum.
void accumulate(const double* line, double weight, int count, bool first, double* out) {
  if (first) {
    for (int j = 0; j < count; ++j) out[j] = line[j] * weight;
  } else {
    for (int j = 0; j < count; ++j) out[j] += line[j] * weight;
  }
}

}  // namespace

std::int64_t combine_workspace(const MapView& maps, int taps) {
  return 2 * maps.cells() + 2 * maps.grid_w + taps;
}

void combine(const MapView& maps, int heads, const double* weights, int taps, Border border,
             double* workspace, float* combined) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int radius = taps / 2;
  double* cells = workspace;
  double* total = cells + maps.cells();
  double* row = total + maps.cells();
  double* extended = row + grid_w;  // grid_w + 2 * radius
  for (std::int64_t index = 0; index < maps.count; ++index) {
    const bool first_head = index % heads == 0;
    read_map(maps, index, cells);
    const bool finite = std::isfinite(sum_cells(cells, maps.cells()));
    for (int i = 0; i < grid_h; ++i) {
      for (int t = 0; t < taps; ++t) {
        const double* line = cells + reflected(i + t - radius, grid_h, border) * grid_w;
        accumulate(line, weights[t], grid_w, t == 0, extended + radius);
      }
      for (int p = 0; p < radius; ++p) {
        extended[p] = extended[radius + reflected(p - radius, grid_w, border)];
        extended[radius + grid_w + p] = extended[radius + reflected(grid_w + p, grid_w, border)];
      }
      for (int t = 0; t < taps; ++t) {
        accumulate(extended + t, weights[t], grid_w, t == 0, row);
      }
      accumulate(row, finite ? 1.0 : std::numeric_limits<double>::quiet_NaN(), grid_w, first_head,
                 total + i * grid_w);
    }
    if (index % heads == heads - 1) {
      for (int i = 0; i < maps.cells(); ++i) *combined++ = static_cast<float>(total[i]);
    }
  }
}

}  // namespace fastground
