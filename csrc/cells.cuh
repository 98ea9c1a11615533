// From the cells of one map to its sum, its cut and one bit a cell, by a warp: as cells.hpp does it
// on the CPU, to the bit.
#pragma once

#include <cmath>

#include "cut.hpp"
#include "warp.cuh"

namespace fastground {
namespace {

// A cell as the number that it is compared as.
__device__ inline float number(float cell) { return cell; }
__device__ inline double number(double cell) { return cell; }
__device__ inline bool number(bool cell) { return cell; }
__device__ inline float number(Bfloat16 cell) {
  return bit_cast<float>(static_cast<std::uint32_t>(cell.bits) << 16);
}
__device__ inline float number(Float16 cell) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(cell.bits));
  return value;
#else
  const std::uint32_t exponent = cell.bits & 0x7c00u;
  const std::uint32_t rebias = exponent == 0x7c00u ? 224u << 23
                               : exponent == 0     ? 113u << 23
                                                   : 112u << 23;
  float value = bit_cast<float>(((cell.bits & 0x7fffu) << 13) + rebias);
  if (exponent == 0) value -= 0x1p-14f;
  return bit_cast<float>(bit_cast<std::uint32_t>(value) | (cell.bits & 0x8000u) << 16);
#endif
}

// Calls f(T{}) with the element type of a dtype whose numbers float32 holds.
template <class F>
FASTGROUND_ANYWHERE auto with_narrow_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float16:
      return f(Float16{});
    case Dtype::bfloat16:
      return f(Bfloat16{});
    default:
      return f(float{});
  }
}

// Calls f(T{}) with the element type of a dtype that is not boolean.
template <class F>
FASTGROUND_ANYWHERE auto with_number_type(Dtype dtype, F&& f) {
  return dtype == Dtype::float64 ? f(double{}) : with_narrow_type(dtype, f);
}

// The cells of a map whose type is asked for at each of them: for kernels that do much more with a
// cell than to read it, and need not be compiled for every type.
struct AnyCells {
  const void* data;
  Dtype dtype;

  __device__ double operator[](int i) const {
    return with_number_type(dtype, [&](auto type) -> double {
      return number(static_cast<const decltype(type)*>(data)[i]);
    });
  }
};

// A batch as kernels read it: the cells of a map lie one after another.
struct Maps {
  const void* data;
  Dtype dtype;
  std::int64_t count;
  std::int64_t stride;
  int grid_h;
  int grid_w;

  template <class T>
  __device__ const T* map(std::int64_t index) const {
    return static_cast<const T*>(data) + index * stride;
  }
  __device__ AnyCells any(std::int64_t index) const {
    return with_number_type(
        dtype, [&](auto type) -> AnyCells { return {map<decltype(type)>(index), dtype}; });
  }
};

// The sum of value(i) over all cells i, in every lane.
template <class Value>
__device__ double sum_over(int count, Value&& value) {
  double sum = 0;
  for (int i = this_lane(); i < count; i += warp_size) sum += value(i);
  return sum_of_lanes(sum);
}

template <class Cells>
__device__ double sum_of(const Cells& cells, int count) {
  return sum_over(count, [&](int i) { return static_cast<double>(number(cells[i])); });
}

// The mean of the cells that count, but at least the least of them: see mean_of in cells.hpp.
template <class Cells, class Counts>
__device__ double mean_of(const Cells& cells, int count, double mean, Counts&& counts) {
  const auto cut = cut_of(number(cells[0]), mean);
  bool below = false;
  for (int i = this_lane(); i < count; i += warp_size) {
    below |= counts(i) && number(cells[i]) <= cut;
  }
  if (__any_sync(all_lanes, below)) return mean;
  double least = INFINITY;
  for (int i = this_lane(); i < count; i += warp_size) {
    const double cell = number(cells[i]);
    if (counts(i) && cell < least) least = cell;
  }
  return least_of_lanes(least);
}

// The level that foreground exceeds; NaN if the sum is not finite.
template <class Cells>
__device__ double level_of(const Cells& cells, int count, double sum, Cut cut) {
  if (!is_finite(sum)) return NAN;
  return level_at(mean_of(cells, count, sum / count, [](int) { return true; }), cut);
}

// Words of the bit stream of so many cells, with one word of zeros behind.
FASTGROUND_ANYWHERE constexpr int stream_words(int cells) { return (cells + 63) / 64 + 1; }

// Writes the bit stream of the cells i of which is_set(i), ordered for all lanes.
template <class IsSet>
__device__ void write_stream(int count, std::uint64_t* stream, IsSet&& is_set) {
  auto* words = reinterpret_cast<std::uint32_t*>(stream);
  __syncwarp();  // spare
  for (int begin = 0, w = 0; w < 2 * stream_words(count); begin += warp_size, ++w) {
    const int i = begin + this_lane();
    const std::uint32_t bits = __ballot_sync(all_lanes, i < count && is_set(i));
    if (this_lane() == w % warp_size) words[w] = bits;
  }
  __syncwarp();
}

}  // namespace
}  // namespace fastground
