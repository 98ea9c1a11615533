#include "spatial_entropy.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace fastground {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

double n_ln_n(int n) {
  static const auto table = [] {
    std::array<double, 256> values{};
    for (int i = 1; i < 256; ++i) values[i] = i * std::log(i);
    return values;
  }();
  return n < 256 ? table[n] : n * std::log(n);
}

// ln N - (sum n ln n) / N, exactly 0 for one region.
double entropy_of_areas(const std::vector<int>& areas) {
  if (areas.size() == 1) return 0;
  int total = 0;
  double sum = 0;
  for (const int area : areas) {
    total += area;
    sum += n_ln_n(area);
  }
  return std::max((n_ln_n(total) - sum) / total, 0.0);
}

double entropy_of_masses(const double* masses, int count, double empty) {
  double total = 0;
  for (int i = 0; i < count; ++i) total += masses[i];
  if (total == 0) return empty;
  double entropy = 0;
  for (int i = 0; i < count; ++i) {
    const double p = masses[i] / total;
    if (p > 0) entropy -= p * std::log(p);
  }
  return std::max(entropy, 0.0);
}

// Reads a map and returns the level that its foreground exceeds: NaN if its sum is not finite.
double read_and_cut(const MapView& maps, std::int64_t index, Cut cut, double* cells) {
  read_map(maps, index, cells);
  if (maps.dtype == Dtype::boolean) return 0.5;
  const double sum = sum_cells(cells, maps.cells());
  return std::isfinite(sum) ? level_of(cut, mean_of(cells, maps.cells(), sum)) : nan;
}

}  // namespace

void head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, Components& components,
                double* cells, double* masses, float* sums, float* entropies) {
  const double nothing = empty == Empty::inf ? std::numeric_limits<double>::infinity() : 0.0;
  for (std::int64_t index = 0; index < maps.count; ++index) {
    read_map(maps, index, cells);
    const double sum = sum_cells(cells, maps.cells());
    const bool finite = std::isfinite(sum);
    if (sums != nullptr) sums[index] = static_cast<float>(finite ? sum : nan);
    if (entropies == nullptr) continue;
    double entropy = nan;
    if (finite) {
      const double mean = mean_of(cells, maps.cells(), sum);
      const int regions = components.find(cells, level_of(cut, mean));
      if (regions == 0) {
        entropy = nothing;
      } else if (weight == Weight::area) {
        entropy = entropy_of_areas(components.areas());
      } else {
        std::fill(masses, masses + regions, 0.0);
        components.add_excess(cells, mean, masses);
        entropy = entropy_of_masses(masses, regions, nothing);
      }
    }
    entropies[index] = static_cast<float>(entropy);
  }
}

void binarize(const MapView& maps, Cut cut, double* cells, bool* mask) {
  for (std::int64_t index = 0; index < maps.count; ++index) {
    const double level = read_and_cut(maps, index, cut, cells);
    for (int i = 0; i < maps.cells(); ++i) *mask++ = cells[i] > level;
  }
}

void label(const MapView& maps, Cut cut, Components& components, double* cells,
           std::int32_t* labels) {
  for (std::int64_t index = 0; index < maps.count; ++index, labels += maps.cells()) {
    components.find(cells, read_and_cut(maps, index, cut, cells));
    components.write_labels(labels);
  }
}

}  // namespace fastground
