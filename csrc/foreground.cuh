// The foreground of each map, and its regions numbered: a warp a map.
#pragma once

#include "cells.cuh"
#include "regions.cuh"

namespace fastground {
namespace {

// A warp for each map, several a block.
template <class T>
__global__ void binarize_by_warp(Maps maps, Cut cut, bool* mask) {
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / warp_size);
  const int count = maps.grid_h * maps.grid_w;
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (index /= warp_size; index < maps.count; index += warps) {
    const T* cells = maps.map<T>(index);
    const auto above = cut_of(number(T{}), level_of(cells, count, sum_of(cells, count), cut));
    bool* to = mask + index * count;
    for (int i = this_lane(); i < count; i += warp_size) to[i] = number(cells[i]) > above;
  }
}

// A warp's memory.
template <int Words>
struct Labels {
  FASTGROUND_ANYWHERE Labels(Arena& arena, int grid_h, int grid_w)
      : regions(arena, grid_h, grid_w),
        stream(arena.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        ranks(arena.take<int>(stream_words(grid_h * grid_w))),
        firsts(arena.take<int>(regions.places())) {}

  Regions<Words> regions;
  std::uint64_t* stream;  // the foreground, then the first cells of all regions
  int* ranks;             // how many regions begin before each word of it
  int* firsts;            // each region's first cell, at the place of its first run
};

// Finds the first cell of each region in raster order.
template <int Words>
__device__ void find_firsts(const Regions<Words>& regions, int* firsts) {
  for (int i = this_lane(); i < regions.places(); i += warp_size) {
    firsts[i] = regions.grid_h * regions.grid_w;
  }
  __syncwarp();
  regions.each_run([&](int strip, int place, const Bits<Words>& run) {
    atomicMin(&firsts[regions.roots[place]], regions.first_cell(strip, run));
  });
  __syncwarp();  // spare
}

// Counts the bits before each word of a stream.
__device__ inline void count_before(const std::uint64_t* stream, int words, int* ranks) {
  int before = 0;
  for (int begin = 0; begin < words; begin += warp_size) {
    const int w = begin + this_lane();
    const int own = w < words ? bits_set(stream[w]) : 0;
    int through = own;
    for (int step = 1; step < warp_size; step *= 2) {
      const int earlier = __shfl_up_sync(all_lanes, through, step);
      if (this_lane() >= step) through += earlier;
    }
    if (w < words) ranks[w] = before + through - own;
    before += __shfl_sync(all_lanes, through, warp_size - 1);
  }
  __syncwarp();
}

template <int Words>
__global__ void __launch_bounds__(warp_size, 16)
    label_by_warp(Maps maps, Cut cut, void* workspace, std::size_t bytes, std::int32_t* labels) {
  Arena arena(block_memory(workspace, bytes));
  const int count = maps.grid_h * maps.grid_w;
  Labels<Words> w(arena, maps.grid_h, maps.grid_w);
  const Regions<Words>& regions = w.regions;
  for (std::int64_t index = blockIdx.x; index < maps.count; index += gridDim.x) {
    if (maps.dtype == Dtype::boolean) {
      const auto* cells = maps.map<std::uint8_t>(index);
      write_stream(count, w.stream, [&](int i) { return cells[i] != 0; });
    } else {
      const AnyCells cells = maps.any(index);
      const double level = level_of(cells, count, sum_of(cells, count), cut);
      write_stream(count, w.stream, [&](int i) { return cells[i] > level; });
    }
    w.regions.find(w.stream);
    find_firsts(regions, w.firsts);
    for (int i = this_lane(); i < stream_words(count); i += warp_size) w.stream[i] = 0;
    __syncwarp();
    auto* words = reinterpret_cast<unsigned*>(w.stream);
    for (int i = this_lane(); i < regions.places(); i += warp_size) {
      const int first = w.firsts[i];
      if (first < count) atomicOr(&words[first / 32], 1u << first % 32);
    }
    __syncwarp();
    count_before(w.stream, stream_words(count), w.ranks);
    std::int32_t* to = labels + index * count;
    for (int i = this_lane(); i < count; i += warp_size) {
      const int row = i / maps.grid_w;
      const int column = i % maps.grid_w;
      int number = 0;
      if ((regions.row(row) & Bits<Words>::span(column, column + 1)).any()) {
        const int first = w.firsts[regions.roots[regions.place_at(row, column)]];
        const std::uint64_t earlier = w.stream[first / 64] & bits_below(first % 64);
        number = 1 + w.ranks[first / 64] + bits_set(earlier);
      }
      to[i] = number;
    }
    __syncwarp();  // spare
  }
}

}  // namespace
}  // namespace fastground
