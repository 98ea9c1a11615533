// The operations on batches of maps, as a table of functions for each instruction set.
//
// kernels.cpp is compiled once for each of them; dispatch.cpp chooses what this processor has. Of
// maps all tables give the same numbers to the bit: sums are added in one fixed order, nothing is
// contracted to fused multiply-adds, and entropies are sums of integers. Attention is the
// exception.
//
// In reading order:
//     cells.hpp       a map: its sum, its cut, a bit for each cell
//     entropy.hpp     head_stats: many maps at once, by block.hpp, prune.hpp and flood.hpp
//     components.hpp  the regions of one map, on rows of bits (bits.hpp)
//     foreground.hpp  binarize, label
//     smooth.hpp      combine
//     boxes.hpp       boxes, with hull.hpp
//     attention.hpp   attention
// simd.hpp has the registers, scratch.hpp the working memory, fixed_point.hpp n ln n.
#pragma once

#include <cstddef>
#include <cstdint>

#include "map_view.hpp"

namespace fastground {

// A vector for each token and head, its numbers side by side; strides count them.
struct Vectors {
  const float* data;
  std::int64_t stride_batch;
  std::int64_t stride_head;
  std::int64_t stride_token;

  const float* at(int batch, int head) const {
    return data + batch * stride_batch + head * stride_head;
  }
};

// softmax(scale * Q K^T) V, of the keys that a query sees; 0 if that is none. Heads are a multiple
// of key_heads, each of which serves successive ones. NaN comes out wherever one is seen; a value
// that is not finite may also show in neighbouring queries that do not see it (in PyTorch, in all).
struct Attention {
  static constexpr int block = 32;  // queries, a bit each of a word
  int blocks() const { return queries / block + (queries % block != 0); }

  int batch, heads, key_heads, queries, keys, head_dim, value_dim;
  Vectors query, key, value;
  const std::uint32_t* seen;  // [batch][blocks][keys]: which queries of the block see the key
  float scale;
  float* out;  // [batch][queries][heads][value_dim]
};

// Which queries see which keys, not 0 being true; strides count elements.
struct Mask {
  const std::uint8_t* data;
  int batch, queries, keys;
  std::int64_t stride_batch, stride_query, stride_key;
};

// Each operation reads maps, writes all of its output and returns how many maps were not finite:
// their numbers are NaN, they have no foreground and no box. `scratch` is working memory of
// scratch_bytes, aligned to 64; nothing else is allocated.
struct Kernels {
  const char* name;

  // -sum p ln p over the regions of each map's foreground, in nats, p being a region's share of the
  // foreground's cells (area) or of the attention above the mean (mass); and the map's sum.
  // Either output may be null. Source: Kang et al., CVPR 2025 (arXiv 2503.06287), eq. 3 and 7.
  std::int64_t (*head_stats)(const MapView& maps, Weight weight, Cut cut, Empty empty,
                             void* scratch, float* sums, float* entropies);

  // Where each map exceeds its cut, contiguous.
  std::int64_t (*binarize)(const MapView& maps, Cut cut, void* scratch, bool* mask);

  // The 8-connected regions of each map's foreground, or of a boolean map, numbered from 1 in
  // raster order of their first cell; 0 is none. Contiguous.
  std::int64_t (*label)(const MapView& maps, Cut cut, void* scratch, std::int32_t* labels);

  // Each `heads` successive maps smoothed and summed; contiguous, maps.count / heads of them. A
  // combined map is NaN where one of its maps is not finite.
  std::int64_t (*combine)(const MapView& maps, int heads, const Taps& taps, void* scratch,
                          float* combined);

  // The box of each `heads` successive maps, smoothed and summed. Foreground is what exceeds the
  // mean of the valid cells; of its 8-connected regions the largest is kept, of equals the one of
  // larger sum, then the first in raster order. The region's cells are its own, or with Keep::hull
  // all valid cells whose centre lies in the hull; mass and score see valid cells only.
  // valid: boolean, of the grid of maps and count / heads of them; a stride may be 0.
  std::int64_t (*boxes)(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                        Keep keep, void* scratch, Box* out);

  // The largest magnitude of all cells, which are not boolean; infinity if one is not finite.
  double (*largest)(const MapView& maps, void* scratch);

  // The blocks [begin, end) of all [batch][heads][blocks]. Tables differ in the last bits.
  void (*attention)(const Attention& attention, std::int64_t begin, std::int64_t end,
                    void* scratch);
  std::size_t (*attention_bytes)(int head_dim, int value_dim);  // of scratch

  // What any operation on maps needs for maps of this grid and a filter of so many taps.
  std::size_t (*scratch_bytes)(int grid_h, int grid_w, int taps);
};

extern const Kernels portable_kernels;
#ifdef FASTGROUND_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// The table of this name, or null if this build or this processor has none.
const Kernels* kernels_named(const char* name);

// The fastest table that this processor runs.
const Kernels& best_kernels();

}  // namespace fastground
