// The foreground of each map, and its regions numbered.
#pragma once

#include "cells.hpp"
#include "components.hpp"

namespace fastground {
namespace {

// Working memory for one map at a time.
struct OneMap {
  OneMap(Scratch& scratch, int grid_h, int grid_w)
      : components(scratch, grid_h, grid_w),
        cells(scratch.take<double>(grid_h * grid_w)),
        stream(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))) {}

  Components components;
  void* cells;
  std::uint64_t* stream;
};

// Calls f(index, stream) with the foreground of each map; returns how many are not finite.
template <class F>
std::int64_t for_each_foreground(const MapView& maps, Cut cut, OneMap& one, F&& f) {
  const int count = maps.grid_h * maps.grid_w;
  return with_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    std::int64_t not_finite = 0;
    for (std::int64_t index = 0; index < maps.count; ++index) {
      const T* cells = contiguous(maps, index, static_cast<T*>(one.cells));
      double level = 0;
      if constexpr (sizeof(T) > 1) {
        level = level_of(cells, count, sum_of(cells, count), cut);
        not_finite += level != level;
      }
      cut_cells(cells, count, cut_of(T{}, level), one.stream);
      f(index, one.stream);
    }
    return not_finite;
  });
}

std::int64_t binarize(const MapView& maps, Cut cut, void* memory, bool* mask) {
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  const int count = maps.grid_h * maps.grid_w;
  return for_each_foreground(maps, cut, one, [&](std::int64_t, const std::uint64_t* stream) {
    for (int i = 0; i < count; ++i) *mask++ = stream[i / 64] >> (i % 64) & 1;
  });
}

std::int64_t label(const MapView& maps, Cut cut, void* memory, std::int32_t* labels) {
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  const int count = maps.grid_h * maps.grid_w;
  return for_each_foreground(maps, cut, one, [&](std::int64_t index, const std::uint64_t* stream) {
    one.components.find(stream);
    one.components.write_labels(labels + index * count);
  });
}

}  // namespace
}  // namespace fastground
