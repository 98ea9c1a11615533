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

}  // namespace

std::int64_t combine_workspace(const MapView& maps, int taps) {
  const std::int64_t rows = maps.grid_h + taps - 1;
  const std::int64_t columns = maps.grid_w + taps - 1;
  return rows * maps.grid_w + columns + maps.grid_w + maps.cells();
}

void combine(const MapView& maps, int heads, const double* weights, int taps, Border border,
             double* workspace, float* combined) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int radius = taps / 2;
  double* rows = workspace;                              // the map, extended above and below
  double* line = rows + (grid_h + 2 * radius) * grid_w;  // one row, extended to both sides
  double* smoothed = line + grid_w + 2 * radius;
  double* total = smoothed + grid_w;
  double* cells = rows + radius * grid_w;
  for (std::int64_t index = 0; index < maps.count; ++index) {
    const bool first_head = index % heads == 0;
    read_map(maps, index, cells);
    const bool finite = std::isfinite(sum_cells(cells, maps.cells()));
    const double factor = finite ? 1.0 : std::numeric_limits<double>::quiet_NaN();
    for (int p = 1; p <= radius; ++p) {
      const double* above = cells + reflected(-p, grid_h, border) * grid_w;
      const double* below = cells + reflected(grid_h - 1 + p, grid_h, border) * grid_w;
      std::copy(above, above + grid_w, cells - p * grid_w);
      std::copy(below, below + grid_w, cells + (grid_h - 1 + p) * grid_w);
    }
    for (int i = 0; i < grid_h; ++i) {
      double* middle = line + radius;
      weigh(rows + i * grid_w, grid_w, weights, taps, grid_w, middle);
      for (int p = 1; p <= radius; ++p) {
        middle[-p] = middle[reflected(-p, grid_w, border)];
        middle[grid_w - 1 + p] = middle[reflected(grid_w - 1 + p, grid_w, border)];
      }
      weigh(line, 1, weights, taps, grid_w, smoothed);
      double* sum = total + i * grid_w;
      for (int j = 0; j < grid_w; ++j) {
        sum[j] = first_head ? smoothed[j] * factor : sum[j] + smoothed[j] * factor;
      }
    }
    if (index % heads == heads - 1) {
      for (int i = 0; i < maps.cells(); ++i) *combined++ = static_cast<float>(total[i]);
    }
  }
}

}  // namespace fastground
