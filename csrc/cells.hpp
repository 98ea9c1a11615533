// From the cells of one map to its sum, its cut and one bit a cell.
//
// Sums are float64 and added in one order, whatever the instruction set: cell i goes to partial sum
// i % 32, and these are folded in halves. On grids of up to 8,192 cells sums of float16 are exact,
// and sums of float32 where the cells lie within a range of 2^(29 - log2(count)): then any order
// gives the same.
//
// The cut of a float32 map is rounded down to float32: for a float32 v then v > cut is exactly
// v > mean. A bit stream holds 64 cells a word, the first in the lowest bit (bits.hpp).
#pragma once

#include <cmath>
#include <limits>

#include "cut.hpp"
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
  // Adds eight cells to the partial sums [first, first + 8).
  template <class T>
  void add(int first, const T* cells) {
    constexpr int registers = 8 / doubles_width;
    Doubles values[registers];
    eight_doubles(cells, values);
    for (int r = 0; r < registers; ++r) {
      Doubles& part = parts_[first / doubles_width + r];
      part = added(part, values[r]);
    }
  }

  double total() {
    for (int half = 16 / doubles_width; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) parts_[r] += parts_[r + half];
    }
    double part[doubles_width];
    __builtin_memcpy(part, parts_, sizeof part);
    for (int half = doubles_width / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) part[lane] += part[lane + half];
    }
    return part[0];
  }

 private:
  Doubles parts_[32 / doubles_width] = {};
};

template <class T>
double sum_of(const T* cells, int count) {
  Sum sum;
  int i = 0;
  for (; i + 32 <= count; i += 32) {
    for (int first = 0; first < 32; first += 8) sum.add(first, cells + i + first);
  }
  for (int first = 0; first < 32 && i < count; first += 8, i += 8) {
    if (i + 8 <= count) {
      sum.add(first, cells + i);
    } else {
      T last[8] = {};
      for (int c = 0; i + c < count; ++c) last[c] = cells[i + c];
      sum.add(first, last);
    }
  }
  return sum.total();
}

// Compares as many cells as a register holds.
template <class T>
constexpr int cells_at_once = lanes<CutOf<T>>;
template <class T>
std::uint64_t cells_above(const T* cells, CutOf<T> cut) {
  return bits_above(floats<Vec<float>>(cells), broadcast(cut));
}
inline std::uint64_t cells_above(const double* cells, double cut) {
  return bits_above(load(cells), broadcast(cut));
}

// The mean, taken to be at least the least cell: else rounding could turn a constant map to
// foreground. The first cell that is not above the mean, soon found, tells that nothing is amiss.
template <class T>
double mean_of(const T* cells, int count, double sum) {
  const double mean = sum / count;
  const CutOf<T> cut = cut_of(T{}, mean);
  constexpr int width = cells_at_once<T>;
  constexpr std::uint64_t all = ~std::uint64_t{0} >> (64 - width);
  int i = 0;
  for (; i + width <= count; i += width) {
    if (cells_above(cells + i, cut) != all) return mean;
  }
  for (; i < count; ++i) {
    if (to_double(cells[i]) <= mean) return mean;
  }
  double least = to_double(cells[0]);
  for (int c = 1; c < count; ++c) {
    const double cell = to_double(cells[c]);
    if (cell < least) least = cell;
  }
  return least;
}

// The level that foreground exceeds; NaN, which nothing exceeds, if the sum is not finite.
template <class T>
double level_of(const T* cells, int count, double sum, Cut cut) {
  if (!std::isfinite(sum)) return not_a_number;
  return level_at(mean_of(cells, count, sum), cut);
}

// Words of the bit stream of so many cells, with one word of zeros behind.
constexpr int stream_words(int cells) { return (cells + 63) / 64 + 1; }

// Writes the bit stream of the cells above a cut, one word in each `step`.
template <class T>
void cut_cells(const T* cells, int count, CutOf<T> cut, std::uint64_t* stream, int step = 1) {
  constexpr int width = cells_at_once<T>;
  int i = 0;
  for (; i + 64 <= count; i += 64) {
    std::uint64_t bits = 0;
    for (int b = 0; b < 64; b += width) bits |= cells_above(cells + i + b, cut) << b;
    *stream = bits;
    stream += step;
  }
  if (i < count) {
    std::uint64_t bits = 0;
    int b = 0;
    for (; i + b + width <= count; b += width) bits |= cells_above(cells + i + b, cut) << b;
    if (i + b < count) {
      T last[width] = {};
      for (int c = 0; i + b + c < count; ++c) last[c] = cells[i + b + c];
      bits |= cells_above(last, cut) << b;
    }
    *stream = bits & ~std::uint64_t{0} >> (64 - (count - i));
    stream += step;
  }
  *stream = 0;
}

}  // namespace
}  // namespace fastground
