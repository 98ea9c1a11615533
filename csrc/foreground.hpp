// The foreground of each map, and its regions numbered.
#pragma once

#include "cells.hpp"
#include "components.hpp"

namespace fastground {
namespace {

// Bit i is whether byte i is not 0.
inline std::uint64_t bits_of_bytes(std::uint64_t bytes) {
  constexpr std::uint64_t low = 0x7f7f7f7f7f7f7f7f;
  const std::uint64_t high = (((bytes & low) + low) | bytes) & ~low;
  return (high >> 7) * 0x0102040810204080 >> 56;
}

// Byte i is bit i of the lowest eight.
inline std::uint64_t bytes_of_bits(std::uint64_t bits) {
  const std::uint64_t spread = (bits & 0xff) * 0x0101010101010101 & 0x8040201008040201;
  return ((spread + 0x7f7f7f7f7f7f7f7f) & 0x8080808080808080) >> 7;
}

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

// The bit stream of a boolean map.
inline void read_mask(const bool* mask, int count, std::uint64_t* stream) {
  for (int i = 0; i < stream_words(count); ++i) stream[i] = 0;
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t bytes;
    __builtin_memcpy(&bytes, mask + i, 8);
    stream[i / 64] |= bits_of_bytes(bytes) << (i % 64);
  }
  for (; i < count; ++i) stream[i / 64] |= std::uint64_t{mask[i]} << (i % 64);
}

// And back.
inline void write_mask(const std::uint64_t* stream, int count, bool* mask) {
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const std::uint64_t bytes = bytes_of_bits(stream[i / 64] >> (i % 64));
    __builtin_memcpy(mask + i, &bytes, 8);
  }
  for (; i < count; ++i) mask[i] = stream[i / 64] >> (i % 64) & 1;
}

// Calls f(index, stream) with the foreground of each map; returns how many are not finite.
template <class F>
std::int64_t for_each_foreground(const MapView& maps, Cut cut, OneMap& one, F&& f) {
  const int count = maps.grid_h * maps.grid_w;
  return with_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    std::int64_t not_finite = 0;
    for (std::int64_t index = 0; index < maps.count; ++index) {
      const T* cells = contiguous(maps, index, static_cast<T*>(one.cells));
      if constexpr (sizeof(T) == 1) {
        read_mask(cells, count, one.stream);
      } else {
        const double level = level_of(cells, count, sum_of(cells, count), cut);
        not_finite += level != level;
        cut_cells(cells, count, cut_of(T{}, level), one.stream);
      }
      f(index, one.stream);
    }
    return not_finite;
  });
}

std::int64_t binarize(const MapView& maps, Cut cut, void* memory, bool* mask) {
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  const std::int64_t count = maps.grid_h * maps.grid_w;
  return for_each_foreground(maps, cut, one, [&](std::int64_t index, const std::uint64_t* stream) {
    write_mask(stream, count, mask + index * count);
  });
}

std::int64_t label(const MapView& maps, Cut cut, void* memory, std::int32_t* labels) {
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  const std::int64_t count = maps.grid_h * maps.grid_w;
  return for_each_foreground(maps, cut, one, [&](std::int64_t index, const std::uint64_t* stream) {
    one.components.find(stream);
    one.components.write_labels(labels + index * count);
  });
}

}  // namespace
}  // namespace fastground
