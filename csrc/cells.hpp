// From the cells of one map to its sum, its cut and one bit a cell.
//
// Sums are float64 and added in one order, whatever the instruction set: cell i goes to partial sum
// i % 32, and these are folded in halves. For cells of float16, and of float32 within a range of
// 2^(29 - log2(count)), every partial sum is exact, so that the order is immaterial.
//
// The cut of a float32 map is rounded down to float32: for a float32 v then v > cut is exactly
// v > mean.
//
//     cells       .1 .7 .6 .0 .2 .9     the map, row after row
//     bit stream   0  1  1  0  0  1     64 cells a word, the first in the lowest bit
//     rows         [0 1 1]  [0 0 1]     a word or four for each row
#pragma once

#include <cmath>
#include <limits>

#include "map_view.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace fastground {
namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// Calls f(T{}) with the element type of a dtype that is not boolean.
template <class F>
auto with_number_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float16:
      return f(Float16{});
    case Dtype::bfloat16:
      return f(Bfloat16{});
    case Dtype::float64:
      return f(double{});
    default:
      return f(float{});
  }
}

// And of any.
template <class F>
auto with_type(Dtype dtype, F&& f) {
  return dtype == Dtype::boolean ? f(bool{}) : with_number_type(dtype, f);
}

// The cells of map `index` in raster order: where they lie, or copied to `buffer` if they do not.
template <class T>
const T* contiguous(const MapView& maps, std::int64_t index, T* buffer) {
  const T* map = static_cast<const T*>(maps.data) + index * maps.stride_map;
  if (maps.stride_column == 1 && (maps.stride_row == maps.grid_w || maps.grid_h == 1)) return map;
  T* to = buffer;
  for (int i = 0; i < maps.grid_h; ++i) {
    const T* row = map + i * maps.stride_row;
    if (maps.stride_column == 1) {
      for (int j = 0; j < maps.grid_w; ++j) *to++ = row[j];
    } else {
      for (int j = 0; j < maps.grid_w; ++j) *to++ = row[j * maps.stride_column];
    }
  }
  return buffer;
}

// 32 partial sums, folded in halves.
class Sum {
 public:
  // Partial sums [index * lanes, index * lanes + lanes).
  void add(int index, Vec<double> cells) { parts_[index] += cells; }

  double total() {
    for (int half = registers / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) parts_[r] += parts_[r + half];
    }
    double part[lanes<double>];
    store(part, parts_[0]);
    for (int half = lanes<double> / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) part[lane] += part[lane + half];
    }
    return part[0];
  }

  static constexpr int registers = 32 / lanes<double>;

 private:
  Vec<double> parts_[registers] = {};
};

template <class T>
double sum_of(const T* cells, int count) {
  constexpr int width = lanes<double>;
  Sum sum;
  int i = 0;
  for (; i + 32 <= count; i += 32) {
    for (int r = 0; r < Sum::registers; ++r) sum.add(r, doubles(cells + i + r * width));
  }
  for (int r = 0; r < Sum::registers; ++r, i += width) {
    if (i + width <= count) {
      sum.add(r, doubles(cells + i));
    } else if (i < count) {
      T last[width] = {};
      for (int c = 0; i + c < count; ++c) last[c] = cells[i + c];
      sum.add(r, doubles(last));
    }
  }
  return sum.total();
}

// The largest float that is not above `level`.
inline float float_below(double level) {
  const float nearest = static_cast<float>(level);
  if (nearest == 0 && level < 0) return -0x1p-149f;
  const auto bits = bit_cast<std::int32_t>(nearest);
  const std::int32_t step = bits >> 31 | 1;  // towards -infinity
  return bit_cast<float>(bits - step * (nearest > level));
}

// Compares as many cells as a register holds with a level.
template <class T>
struct Above {
  static constexpr int width = lanes<float>;
  Vec<float> level;
  explicit Above(double value) : level(broadcast(float_below(value))) {}
  std::uint64_t operator()(const T* cells) const {
    return bits_above(floats<Vec<float>>(cells), level);
  }
};
template <>
struct Above<double> {
  static constexpr int width = lanes<double>;
  Vec<double> level;
  explicit Above(double value) : level(broadcast(value)) {}
  std::uint64_t operator()(const double* cells) const { return bits_above(load(cells), level); }
};
template <>
struct Above<bool> {
  static constexpr int width = 1;
  explicit Above(double) {}
  std::uint64_t operator()(const bool* cells) const { return *cells ? 1 : 0; }
};

// The mean, taken to be at least the least cell: else rounding could turn a constant map to
// foreground. All cells of a first register above the mean are rare; only then all are looked at.
template <class T>
double mean_of(const T* cells, int count, double sum) {
  const double mean = sum / count;
  constexpr int width = Above<T>::width;
  if (count >= width && Above<T>(mean)(cells) != ~std::uint64_t{0} >> (64 - width)) return mean;
  double least = to_double(cells[0]);
  for (int i = 1; i < count; ++i) {
    const double cell = to_double(cells[i]);
    if (cell < least) least = cell;
  }
  return mean < least ? least : mean;
}

// The level that foreground exceeds; NaN, which nothing exceeds, if the sum is not finite.
template <class T>
double level_of(const T* cells, int count, double sum, Cut cut) {
  constexpr double eps = 1e-3;
  if (!std::isfinite(sum)) return not_a_number;
  const double mean = mean_of(cells, count, sum);
  return cut == Cut::mean ? mean : (cut == Cut::mean_eps ? mean : 2 * mean) + eps;
}

// Words of the bit stream of so many cells, with one word of zeros behind.
constexpr int stream_words(int cells) { return (cells + 63) / 64 + 1; }

// Writes the bit stream of the cells above a level, one word in each `step`; returns how many there
// are.
template <class T>
int cut_cells(const T* cells, int count, double level, std::uint64_t* stream, int step = 1) {
  const Above<T> above(level);
  constexpr int width = Above<T>::width;
  int total = 0;
  int i = 0;
  for (; i + 64 <= count; i += 64) {
    std::uint64_t bits = 0;
    for (int b = 0; b < 64; b += width) bits |= above(cells + i + b) << b;
    *stream = bits;
    stream += step;
    total += __builtin_popcountll(bits);
  }
  if (i < count) {
    std::uint64_t bits = 0;
    int b = 0;
    for (; i + b + width <= count; b += width) bits |= above(cells + i + b) << b;
    if (i + b < count) {
      T last[width] = {};
      for (int c = 0; i + b + c < count; ++c) last[c] = cells[i + b + c];
      bits |= above(last) << b;
    }
    bits &= ~std::uint64_t{0} >> (64 - (count - i));
    *stream = bits;
    stream += step;
    total += __builtin_popcountll(bits);
  }
  *stream = 0;
  return total;
}

// Calls f(row, bits) for each row of at most 64 columns.
template <class F>
void for_each_row(const std::uint64_t* stream, int grid_h, int grid_w, F&& f) {
  const std::uint64_t mask = ~std::uint64_t{0} >> (64 - grid_w);
  for (int row = 0, at = 0; row < grid_h; ++row, at += grid_w) {
    const std::uint64_t low = stream[at / 64] >> (at % 64);
    const std::uint64_t high = stream[at / 64 + 1] << 1 << (63 - at % 64);
    f(row, (low | high) & mask);
  }
}

}  // namespace
}  // namespace fastground
