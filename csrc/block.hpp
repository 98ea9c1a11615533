// A block of maps on its way to the flood: summed, cut, and turned so that a map is a lane.
//
//     maps, cell by cell  ->  bit streams  ->  rows          ->  rows without small regions
//                             64 cells of      word m is a       ready for the flood
//                             map m a word     row of map m
//
// Turning costs next to nothing, because the streams already lie side by side: a row of eight maps
// is a shift of one or two words of each.
#pragma once

#include "cells.hpp"
#include "flood.hpp"
#include "prune.hpp"

namespace fastground {
namespace {

constexpr int first_cache = 24 * 1024;  // bytes of maps; of 32 KiB or more the bits need some

// Working memory for a block of maps, one a lane. Word w of the bit stream of map m lies at
// streams[w * columns + m]; the columns are no power of two, or all rows would share a few sets of
// the cache.
template <class Word>
struct Block {
  static constexpr int maps = sizeof(Word) == 4 ? 256 : 128;
  static constexpr int columns = maps + 64 / static_cast<int>(sizeof(Word));
  static constexpr int ahead = 8;  // maps summed before the first is cut, if the cache holds them

  Block(Scratch& scratch, int h, int w)
      : grid_h(h),
        grid_w(w),
        words(stream_words(h * w)),
        flood(scratch, h, columns),
        streams(scratch.take<std::uint64_t>(words * columns)),
        cells(scratch.take<double>(ahead * h * w)),
        finite(scratch.take<bool>(maps)),
        foreground(scratch.take<std::uint64_t>(maps)),
        sums(scratch.take<std::uint64_t>(maps)) {}

  int size_of(std::int64_t rest) const { return rest < maps ? static_cast<int>(rest) : maps; }

  int grid_h, grid_w;
  int words;
  Flood<Word> flood;
  std::uint64_t* streams;
  void* cells;  // of maps that are not contiguous
  bool* finite;
  std::uint64_t* foreground;  // cells of each map
  std::uint64_t* sums;        // of n ln n, of each map
};

// Sums and cuts `count` maps, few enough for the first cache, to the columns from m on. What one
// step waits for, the next map's step need not.
template <class Word, class T>
std::int64_t sum_and_cut_few(const MapView& maps, std::int64_t index, int count, Cut cut,
                             Block<Word>& block, int m, float* sums) {
  constexpr int most = Block<Word>::ahead;
  const int size = maps.grid_h * maps.grid_w;
  const T* cells[most];
  double sum[most];
  CutOf<T> above[most];
  std::int64_t not_finite = 0;
  for (int i = 0; i < count; ++i) {
    cells[i] = contiguous(maps, index + i, static_cast<T*>(block.cells) + i * size);
    sum[i] = sum_of(cells[i], size);
  }
  for (int i = 0; i < count; ++i) {
    above[i] = cut_of(T{}, level_of(cells[i], size, sum[i], cut));
    const float rounded = rounded_sum(sum[i]);
    not_finite += !std::isfinite(rounded);
    if (sums != nullptr) sums[index + i] = rounded;
  }
  for (int i = 0; i < count; ++i) {
    cut_cells(cells[i], size, above[i], block.streams + m + i, Block<Word>::columns);
    block.finite[m + i] = std::isfinite(sum[i]);
    block.sums[m + i] = 0;
  }
  return not_finite;
}

// Sums `count` maps from `index` on and writes their bit streams; returns how many are not finite.
template <class Word, class T>
std::int64_t sum_and_cut(const MapView& maps, std::int64_t index, int count, Cut cut,
                         Block<Word>& block, float* sums) {
  const int fitting = first_cache / (maps.grid_h * maps.grid_w * static_cast<int>(sizeof(T)));
  const int most = fitting < 1 ? 1 : fitting < Block<Word>::ahead ? fitting : Block<Word>::ahead;
  std::int64_t not_finite = 0;
  for (int m = 0; m < count; m += most) {
    const int few = count - m < most ? count - m : most;
    not_finite += sum_and_cut_few<Word, T>(maps, index + m, few, cut, block, m, sums);
  }
  return not_finite;
}

// Counts the foreground cells of each map.
template <class Word>
void count_cells(Block<Word>& block, int count) {
  for (int m = 0; m < count; m += lanes<std::uint64_t>) {
    Vec<std::uint64_t> total{};
    for (int w = 0; w < block.words; ++w) {
      total += popcount<std::uint64_t>(load(block.streams + w * Block<Word>::columns + m));
    }
    store(block.foreground + m, total);
  }
}

// Turns the bit streams: row i of a map is its bits [i * grid_w, i * grid_w + grid_w).
template <class Word>
void split_rows(Block<Word>& block, int count) {
  using Wide = Vec<std::uint64_t>;
  using Narrow = typename VectorOf<Word, lanes<std::uint64_t> * sizeof(Word)>::type;
  const Wide mask = broadcast(~std::uint64_t{0} >> (64 - block.grid_w));
  for (int i = 0, at = 0; i < block.grid_h; ++i, at += block.grid_w) {
    const std::uint64_t* low = block.streams + at / 64 * Block<Word>::columns;
    const std::uint64_t* high = low + Block<Word>::columns;
    Word* row = block.flood.row(i);
    for (int m = 0; m < count; m += lanes<std::uint64_t>) {
      const Wide bits = load(low + m) >> at % 64 | load(high + m) << 1 << (63 - at % 64);
      const Narrow narrow = __builtin_convertvector(bits & mask, Narrow);
      __builtin_memcpy(row + m, &narrow, sizeof narrow);
    }
  }
}

// Takes out regions of one and of two cells, and adds the n ln n of the latter.
template <class Word>
void prune(Block<Word>& block, int count) {
  const int grid_h = block.grid_h;
  for (int m = 0; m < count; m += lanes<Word>) {
    Pruner<LanesOf<Word>> pruner;
    pruner.next(load(block.flood.row(0) + m));
    for (int i = 1; i <= grid_h + 1; ++i) {
      const Vec<Word> row = i < grid_h ? load(block.flood.row(i) + m) : Vec<Word>{};
      const Vec<Word> rest = pruner.next(row);
      if (i >= 2) store(block.flood.row(i - 2) + m, rest);
    }
    Word halves[lanes<Word>];
    store(halves, pruner.halves);
    for (int lane = 0; lane < lanes<Word>; ++lane) {
      block.sums[m + lane] += halves[lane] / 2 * n_ln_n(2);
    }
  }
}

}  // namespace
}  // namespace fastground
