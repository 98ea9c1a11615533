// Attention sum and spatial entropy of attention maps, one read of each map.
#pragma once

#include "components.hpp"
#include "map_view.hpp"

namespace fastground {

enum class Weight { area, mass };
enum class Empty { inf, zero };

// -sum p ln p over the regions of each map's foreground, in nats, p being a region's share of the
// foreground's cells (area) or of the attention above the mean (mass).
//
// sums, entropies: maps.count floats each, or null where not wanted. A map whose sum is not finite
// gets NaN in both. cells: maps.cells() doubles; masses: one double for each cell.
//
// Source: Kang et al., CVPR 2025 (arXiv 2503.06287), equations 3 and 7.
void head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, Components& components,
                double* cells, double* masses, float* sums, float* entropies);

// Where each map exceeds its cut, contiguous; nowhere if its sum is not finite.
void binarize(const MapView& maps, Cut cut, double* cells, bool* mask);

// The regions of each map's foreground, or of a boolean map, numbered in raster order from 1.
void label(const MapView& maps, Cut cut, Components& components, double* cells,
           std::int32_t* labels);

}  // namespace fastground
