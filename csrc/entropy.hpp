// The sum and the spatial entropy of each map.
#pragma once

#include "cells.hpp"
#include "fixed_point.hpp"
#include "flood.hpp"
#include "foreground.hpp"
#include "prune.hpp"

namespace fastground {
namespace {

// From the number of foreground cells and the sum of n ln n over the regions.
float entropy_of_areas(int cells, std::uint64_t sum, float nothing) {
  if (cells == 0) return nothing;
  const std::uint64_t all = cells < n_ln_n_known ? n_ln_n_table[cells] : compute_n_ln_n(cells);
  const double entropy = static_cast<double>(all > sum ? all - sum : 0) * fixed_point_unit / cells;
  return static_cast<float>(entropy);
}

double entropy_of_masses(const double* masses, int count, double empty) {
  double total = 0;
  for (int i = 0; i < count; ++i) total += masses[i];
  if (total == 0) return empty;
  double entropy = 0;
  for (int i = 0; i < count; ++i) {
    const double p = masses[i] / total;
    if (p > 0) entropy -= p * __builtin_log(p);
  }
  return entropy > 0 ? entropy : 0;
}

constexpr int first_cache = 24 * 1024;  // of 32 KiB or more, some is needed for bits

// Working memory for a block of maps, one a lane.
template <class Word>
struct Block {
  static constexpr int maps = sizeof(Word) == 4 ? 256 : 128;
  static constexpr int ahead = 8;  // maps summed before the first is cut, if the cache holds them

  Block(Scratch& scratch, int grid_h, int grid_w)
      : flood(scratch, grid_h, maps),
        streams(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w) * maps)),
        cells(scratch.take<double>(ahead * grid_h * grid_w)),
        finite(scratch.take<bool>(maps)),
        foreground(scratch.take<std::uint64_t>(maps)),
        sums(scratch.take<std::uint64_t>(maps)) {}

  Flood<Word> flood;
  std::uint64_t* streams;  // word w of map m at w * maps + m
  void* cells;             // of maps that are not contiguous
  bool* finite;
  std::uint64_t* foreground;  // cells of each map
  std::uint64_t* sums;        // of n ln n
};

// Counts the foreground cells of the first `count` maps.
template <class Word>
void count_cells(Block<Word>& block, int count, int words) {
  for (int m = 0; m < count; m += lanes<std::uint64_t>) {
    Vec<std::uint64_t> total{};
    for (int w = 0; w < words; ++w) {
      total += popcount<std::uint64_t>(load(block.streams + w * Block<Word>::maps + m));
    }
    store(block.foreground + m, total);
  }
}

// The rows of the first `count` maps, out of their bit streams: row i is [i * grid_w, + grid_w).
template <class Word>
void split_rows(Block<Word>& block, int count, int grid_h, int grid_w) {
  using Wide = Vec<std::uint64_t>;
  using Narrow = typename VectorOf<Word, lanes<std::uint64_t> * sizeof(Word)>::type;
  const Wide mask = broadcast(~std::uint64_t{0} >> (64 - grid_w));
  for (int i = 0, at = 0; i < grid_h; ++i, at += grid_w) {
    const std::uint64_t* low = block.streams + at / 64 * Block<Word>::maps;
    const std::uint64_t* high = low + Block<Word>::maps;
    Word* row = block.flood.row(i);
    for (int m = 0; m < count; m += lanes<std::uint64_t>) {
      const Wide bits = load(low + m) >> at % 64 | load(high + m) << 1 << (63 - at % 64);
      const Narrow narrow = __builtin_convertvector(bits & mask, Narrow);
      __builtin_memcpy(row + m, &narrow, sizeof narrow);
    }
  }
}

// Takes out regions of one and two cells; of the latter adds n ln n to the sums.
template <class Word>
void prune(Block<Word>& block, int count, int grid_h) {
  for (int m = 0; m < count; m += lanes<Word>) {
    Pruner<Word> pruner;
    pruner.next(load(block.flood.row(0) + m));
    for (int i = 1; i <= grid_h + 1; ++i) {
      const Vec<Word> row = i < grid_h ? load(block.flood.row(i) + m) : Vec<Word>{};
      const Vec<Word> rest = pruner.next(row);
      if (i >= 2) store(block.flood.row(i - 2) + m, rest);
    }
    Word halves[lanes<Word>];
    store(halves, pruner.halves);
    for (int lane = 0; lane < lanes<Word>; ++lane) {
      block.sums[m + lane] += halves[lane] / 2 * n_ln_n_table[2];
    }
  }
}

// Sums `count` maps from `index` on and writes their bit streams to columns from m on; returns how
// many are not finite. What one step waits for, the next map's first step need not.
template <class Word, class T>
std::int64_t sum_and_cut(const MapView& maps, std::int64_t index, int count, Cut cut,
                         Block<Word>& block, int m, float* sums) {
  constexpr int most = Block<Word>::ahead;
  const int size = maps.grid_h * maps.grid_w;
  const T* cells[most];
  double sum[most];
  CutOf<T> level[most];
  std::int64_t not_finite = 0;
  for (int i = 0; i < count; ++i) {
    cells[i] = contiguous(maps, index + i, static_cast<T*>(block.cells) + i * size);
    sum[i] = sum_of(cells[i], size);
  }
  for (int i = 0; i < count; ++i) {
    level[i] = cut_of(T{}, level_of(cells[i], size, sum[i], cut));
    const auto rounded = static_cast<float>(sum[i]);
    not_finite += !std::isfinite(rounded);
    block.finite[m + i] = std::isfinite(sum[i]);
    if (sums != nullptr) sums[index + i] = std::isfinite(sum[i]) ? rounded : NAN;
  }
  for (int i = 0; i < count; ++i) {
    cut_cells(cells[i], size, level[i], block.streams + m + i, Block<Word>::maps);
    block.sums[m + i] = 0;
  }
  return not_finite;
}

template <class Word, class T>
std::int64_t head_stats_by_lanes(const MapView& maps, Cut cut, float nothing, void* memory,
                                 float* sums, float* entropies) {
  constexpr int most = Block<Word>::maps;
  const auto bytes = maps.grid_h * maps.grid_w * static_cast<int>(sizeof(T));
  const int fitting = first_cache / bytes;
  const int ahead = fitting < 1 ? 1 : fitting < Block<Word>::ahead ? fitting : Block<Word>::ahead;
  Scratch scratch(memory);
  Block<Word> block(scratch, maps.grid_h, maps.grid_w);
  if (maps.grid_h % 2 != 0) {
    for (int m = 0; m < most; ++m) block.flood.row(maps.grid_h)[m] = 0;
  }
  std::int64_t not_finite = 0;
  for (std::int64_t begin = 0; begin < maps.count; begin += most) {
    const std::int64_t rest = maps.count - begin;
    const int size = rest < most ? static_cast<int>(rest) : most;
    for (int m = 0; m < size; m += ahead) {
      const int count = size - m < ahead ? size - m : ahead;
      not_finite += sum_and_cut<Word, T>(maps, begin + m, count, cut, block, m, sums);
    }
    count_cells(block, size, stream_words(maps.grid_h * maps.grid_w));
    split_rows(block, size, maps.grid_h, maps.grid_w);
    prune(block, size, maps.grid_h);
    block.flood.run(size, block.sums);
    for (int m = 0; m < size; ++m) {
      const auto cells = static_cast<int>(block.foreground[m]);
      const float entropy = entropy_of_areas(cells, block.sums[m], nothing);
      entropies[begin + m] = block.finite[m] ? entropy : NAN;
    }
  }
  return not_finite;
}

std::int64_t head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, void* memory,
                        float* sums, float* entropies) {
  if (entropies != nullptr && weight == Weight::area && maps.grid_w <= 64) {
    const auto value = static_cast<float>(empty == Empty::inf ? INFINITY : 0.0);
    return with_number_type(maps.dtype, [&](auto type) {
      using T = decltype(type);
      return maps.grid_w <= 32
                 ? head_stats_by_lanes<std::uint32_t, T>(maps, cut, value, memory, sums, entropies)
                 : head_stats_by_lanes<std::uint64_t, T>(maps, cut, value, memory, sums, entropies);
    });
  }
  Scratch scratch(memory);
  OneMap one(scratch, maps.grid_h, maps.grid_w);
  double* masses = scratch.take<double>(maps.grid_h * maps.grid_w);
  const int count = maps.grid_h * maps.grid_w;
  const double nothing = empty == Empty::inf ? std::numeric_limits<double>::infinity() : 0.0;
  return with_number_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    std::int64_t not_finite = 0;
    if constexpr (sizeof(T) > 1) {
      for (std::int64_t index = 0; index < maps.count; ++index) {
        const T* cells = contiguous(maps, index, static_cast<T*>(one.cells));
        const double sum = sum_of(cells, count);
        const bool finite = std::isfinite(static_cast<float>(sum));
        not_finite += !finite;
        if (sums != nullptr)
          sums[index] = static_cast<float>(std::isfinite(sum) ? sum : not_a_number);
        if (entropies == nullptr) continue;
        double entropy = not_a_number;
        if (std::isfinite(sum)) {
          cut_cells(cells, count, cut_of(T{}, level_of(cells, count, sum, cut)), one.stream);
          const int regions = one.components.find(one.stream);
          if (regions == 0) {
            entropy = nothing;
          } else if (weight == Weight::area) {
            std::uint64_t all = 0;
            int total = 0;
            for (int i = 0; i < regions; ++i) {
              const int area = one.components.areas()[i];
              all += area < n_ln_n_known ? n_ln_n_table[area] : compute_n_ln_n(area);
              total += area;
            }
            entropy = entropy_of_areas(total, all, static_cast<float>(nothing));
          } else {
            for (int i = 0; i < regions; ++i) masses[i] = 0;
            one.components.add_excess(cells, level_of(cells, count, sum, Cut::mean), masses);
            entropy = entropy_of_masses(masses, regions, nothing);
          }
        }
        entropies[index] = static_cast<float>(entropy);
      }
    }
    return not_finite;
  });
}

}  // namespace
}  // namespace fastground
