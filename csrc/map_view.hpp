// A batch of attention maps without ownership, and how a map is read.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace fastground {

enum class Dtype { boolean, float16, bfloat16, float32, float64 };

// `count` maps of grid_h x grid_w cells; strides count elements and may be 0 or negative.
struct MapView {
  const void* data;
  Dtype dtype;
  std::int64_t count;
  int grid_h;
  int grid_w;
  std::int64_t stride_map;
  std::int64_t stride_row;
  std::int64_t stride_column;

  int cells() const { return grid_h * grid_w; }
};

struct Float16 {
  std::uint16_t bits;
};

struct Bfloat16 {
  std::uint16_t bits;
};

inline double to_double(bool value) { return value ? 1.0 : 0.0; }
inline double to_double(float value) { return value; }
inline double to_double(double value) { return value; }

inline double to_double(Bfloat16 value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Exact, by way of float32 normals only: the exponent is rebiased by 112; a subnormal is read as
// 2^-14 * (1 + fraction), less 2^-14.
inline double to_double(Float16 value) {
  const std::uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const std::uint32_t exponent = value.bits & 0x7c00u;
  const std::uint32_t rebias = exponent == 0x7c00u ? 224u << 23 : 112u << 23;
  const std::uint32_t bits = magnitude + (exponent == 0 ? 113u << 23 : rebias);
  float result;
  std::memcpy(&result, &bits, sizeof result);
  if (exponent == 0) result -= 0x1p-14f;
  return value.bits & 0x8000u ? -result : result;
}

template <class T>
void read_map(const MapView& maps, std::int64_t index, double* cells) {
  const T* map = static_cast<const T*>(maps.data) + index * maps.stride_map;
  for (int i = 0; i < maps.grid_h; ++i, cells += maps.grid_w) {
    const T* row = map + i * maps.stride_row;
    if (maps.stride_column == 1) {
      for (int j = 0; j < maps.grid_w; ++j) cells[j] = to_double(row[j]);
    } else {
      for (int j = 0; j < maps.grid_w; ++j) cells[j] = to_double(row[j * maps.stride_column]);
    }
  }
}

// Writes map `index` in raster order, exactly, as float64; a boolean becomes 0 or 1.
inline void read_map(const MapView& maps, std::int64_t index, double* cells) {
  switch (maps.dtype) {
    case Dtype::boolean:
      return read_map<bool>(maps, index, cells);
    case Dtype::float16:
      return read_map<Float16>(maps, index, cells);
    case Dtype::bfloat16:
      return read_map<Bfloat16>(maps, index, cells);
    case Dtype::float32:
      return read_map<float>(maps, index, cells);
    case Dtype::float64:
      return read_map<double>(maps, index, cells);
  }
}

// Eight partial sums in a fixed order: the same result on every machine. For cells of float16, and
// of float32 within a range of 2^(29 - log2(count)), the sum is exact, so the order is immaterial.
inline double sum_cells(const double* cells, int count) {
  double part[8] = {};
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += cells[i + lane];
  }
  for (; i < count; ++i) part[i % 8] += cells[i];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

}  // namespace fastground
