// The combined map of k heads: each map smoothed by a separable Gaussian, then summed.
#pragma once

#include "map_view.hpp"

namespace fastground {

// reflect101 is dcb|abcd|cba, reflect is dcba|abcd|dcba; both repeat where the line is short.
enum class Border { reflect101, reflect };

// Doubles of working memory that combine needs.
std::int64_t combine_workspace(const MapView& maps, int taps);

// Sums each `heads` successive maps, smoothed along the columns and then along the rows by `taps`
// weights (an odd number, centred). All is computed in float64, taps and heads added in order, and
// rounded once. A combined map is NaN where the sum of one of its maps is not finite.
//
// combined: maps.count / heads contiguous maps.
void combine(const MapView& maps, int heads, const double* weights, int taps, Border border,
             double* workspace, float* combined);

}  // namespace fastground
