// The operations on whole batches: those of the kernels in use, shared among the threads.
//
// A batch is cut into slices, and where there is enough work several threads take them, each with
// its own working memory. A map is always computed alone, so that slices and threads leave no trace
// in its numbers. What is read, written and returned is said in kernels.hpp.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace fastground {

std::int64_t head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, float* sums,
                        float* entropies);
std::int64_t binarize(const MapView& maps, Cut cut, bool* mask);
std::int64_t label(const MapView& maps, Cut cut, std::int32_t* labels);
std::int64_t combine(const MapView& maps, int heads, const Taps& taps, float* combined);
std::int64_t boxes(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                   Keep keep, Box* out);
double largest(const MapView& maps);

// On so many threads; a mask is read by mask_words, [batch][blocks][keys] of Attention::seen.
void attention(const Attention& all, int threads);
void mask_words(const Mask& mask, std::uint32_t* words);

// How many groups of `heads` maps there are; throws std::invalid_argument if one is not full.
std::int64_t groups_of(const MapView& maps, int heads);

// The best kernels at first.
const Kernels& kernels_in_use();
void use_kernels(const Kernels& kernels);

}  // namespace fastground
