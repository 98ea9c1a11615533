// The foreground of each map, and its regions numbered.
#pragma once

#include "cells.hpp"
#include "components.hpp"

namespace fastground {
namespace {

// Bit i is whether byte i is not 0, for 64 bytes.
inline std::uint64_t bits_of_bytes(const bool* from) {
#if defined(FASTGROUND_AVX512)
  const __m512i bytes = load_as<__m512i>(from);
  return _mm512_test_epi8_mask(bytes, bytes);
#else
  constexpr std::uint64_t low = 0x7f7f7f7f7f7f7f7f;
  std::uint64_t bits = 0;
  for (int i = 0; i < 64; i += 8) {
    const auto bytes = load_as<std::uint64_t>(from + i);
    const std::uint64_t high = (((bytes & low) + low) | bytes) & ~low;
    bits |= (high >> 7) * 0x0102040810204080 >> 56 << i;  // gathers bits 0, 8, 16, ...
  }
  return bits;
#endif
}

// Byte i is bit i, for 64 of them.
inline void bytes_of_bits(std::uint64_t bits, bool* to) {
#if defined(FASTGROUND_AVX512)
  const __m512i bytes = _mm512_maskz_set1_epi8(bits, 1);
  __builtin_memcpy(to, &bytes, 64);
#else
  for (int i = 0; i < 64; i += 8) {
    const std::uint64_t own = (bits >> i & 0xff) * 0x0101010101010101 & 0x8040201008040201;
    const std::uint64_t bytes = ((own + 0x7f7f7f7f7f7f7f7f) & 0x8080808080808080) >> 7;
    __builtin_memcpy(to + i, &bytes, 8);
  }
#endif
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
  int i = 0;
  for (; i + 64 <= count; i += 64) *stream++ = bits_of_bytes(mask + i);
  if (i < count) {
    bool last[64] = {};
    __builtin_memcpy(last, mask + i, count - i);
    *stream++ = bits_of_bytes(last);
  }
  *stream = 0;
}

// And back.
inline void write_mask(const std::uint64_t* stream, int count, bool* mask) {
  int i = 0;
  for (; i + 64 <= count; i += 64) bytes_of_bits(*stream++, mask + i);
  if (i < count) {
    bool last[64];
    bytes_of_bits(*stream, last);
    __builtin_memcpy(mask + i, last, count - i);
  }
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
    one.components.label(stream, labels + index * count);
  });
}

}  // namespace
}  // namespace fastground
