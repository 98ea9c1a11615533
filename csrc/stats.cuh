// The sums and the entropies of maps of at most 32 x 32 cells, and the sums of any.
//
//     load     a warp takes its maps one after another, 32 cells at once, and keeps a bit a cell
//              (a ballot of all lanes); the next map is on its way while this one is cut
//     turn     by shared memory: lane m takes the rows of map m
//     flood    each lane floods its own map in registers, by flood_step.hpp
//
// A warp that loads 32 maps floods the same 32. Where maps are fewer, the warps of a block load a
// few each and the first warp floods them all: loading is what takes time, and it is shared. Still
// fewer: large_stats.cuh.
#pragma once

#include <type_traits>

#include "bits.hpp"
#include "cells.cuh"
#include "flood_step.hpp"
#include "prune.hpp"
#include "shares.hpp"

namespace fastground {
namespace {

struct OneLane {
  using V = std::uint32_t;
  __device__ static V reversed(V x) { return __brev(x); }
  __device__ static V popcount(V x) { return __popc(x); }
};

// Two rows of one map. To make a register again is cheaper here than to keep it.
struct LaneStrip {
  using V = OneLane::V;

  V top, bottom, left, flooded;

  __device__ V both() const { return top | bottom; }
  __device__ V mirrored() const { return OneLane::reversed(both()); }
};

// One map's strips on their way through the flood, one lane's own.
template <int Strips>
class LaneFlood {
 public:
  // Takes the rows row(0) to row(2 * Strips - 1) without regions of one and two cells.
  template <class Row>
  __device__ LaneFlood(const std::uint64_t* n_ln_n, Row&& row) : n_ln_n_(n_ln_n) {
    Pruner<OneLane> pruner;
    V above = 0;
    pruner.next(row(0));
#pragma unroll
    for (int i = 1; i <= 2 * Strips + 1; ++i) {
      const V rest = pruner.next(i < 2 * Strips ? row(i) : 0);
      if (i % 2 == 0) above = rest;
      if (i >= 3 && i % 2 == 1) strips_[(i - 3) / 2] = {above, rest, above | rest, 0};
    }
    sum_ = pruner.halves / 2 * n_ln_n[2];
  }

  // The sum of n ln n over the regions.
  __device__ std::uint64_t run() {
    busy_ = false;
#pragma unroll
    for (const LaneStrip& strip : strips_) busy_ |= strip.left != 0;
    while (busy_) {
      sweep<true>();
      sweep<false>();
    }
    return sum_;
  }

 private:
  using V = OneLane::V;

  template <bool Down>
  __device__ void sweep() {
    const auto note = [&](V quiet, V area) {
      if (quiet == 0 && area != 0) sum_ += n_ln_n_[area];
    };
    FloodStep<OneLane> step;
    step.begin(0, open_until_);
#pragma unroll
    for (int i = 0; i < Strips; ++i) {
      step.template advance<Down>(strips_[Down ? i : Strips - 1 - i], i, 0, open_until_, note);
    }
    note(step.contact, step.area);
    open_until_ = step.open_until(Strips);
    busy_ = (step.contact | step.left) != 0;
  }

  LaneStrip strips_[Strips];
  const std::uint64_t* n_ln_n_;
  std::uint64_t sum_;
  V open_until_ = 0;
  bool busy_;
};

// A grid's sides; of `Side` cells each, where that is known when the kernel is compiled, so that
// nothing need be asked at each chunk of cells.
template <int Side>
struct Grid {
  int h, w;

  __device__ explicit Grid(const Maps& maps)
      : h(Side > 0 ? Side : maps.grid_h), w(Side > 0 ? Side : maps.grid_w) {}
  __device__ int cells() const { return h * w; }
};

// What is read and written by the kernels of this file and of large_stats.cuh.
struct StatsCall {
  Maps maps;
  Cut cut;
  float nothing;                // the entropy of a map without foreground
  const std::uint64_t* n_ln_n;  // of as many cells as the largest grid has
  float* sums;                  // or null
  float* entropies;
};

// Words of shared memory for the bits of a map: their number is odd, so that lanes that read the
// same word of different maps read from different banks.
FASTGROUND_ANYWHERE constexpr int words_a_map(int cells) { return ((cells + 31) / 32 + 2) | 1; }

// The cells of a map that are this lane's: 32 apart. Held, they are read once; else, where there
// are more than registers, at each pass, which finds them in the cache.
template <class T, int Chunks, bool Held>
class LaneCells {
 public:
  __device__ void load(const T* map, int count) {
    map_ = map;
    if constexpr (Held) {
#pragma unroll
      for (int c = 0; c < Chunks; ++c) {
        if (place(c) < count) raw_[c] = map[place(c)];
      }
    }
  }

  // Once they are there: until then nothing else may ask for them.
  __device__ void arrive() {
    if constexpr (Held) {
#pragma unroll
      for (int c = 0; c < Chunks; ++c) held_[c] = kept(raw_[c]);
    }
  }

  __device__ double sum(int count) const {
    double sum = 0;
#pragma unroll passes
    for (int c = 0; c < Chunks; ++c) {
      if (place(c) < count) sum += static_cast<double>(cell(c));
    }
    return sum_of_lanes(sum);
  }

  __device__ double least(int count) const {
    double least = INFINITY;
    for (int c = 0; c < Chunks; ++c) {
      if (place(c) < count && cell(c) < least) least = cell(c);
    }
    return least_of_lanes(least);
  }

  // Lane c gets the bits of the 32 cells from c * 32 on. Returns whether all cells are above.
  template <class Number>
  __device__ bool cut(int count, Number level, std::uint32_t& bits) const {
    bits = 0;
#pragma unroll passes
    for (int c = 0; c < Chunks; ++c) {
      if (c * warp_size < count) {
        const bool above = place(c) < count && cell(c) > level;
        const std::uint32_t ballot = __ballot_sync(all_lanes, above);
        if (this_lane() == c) bits = ballot;
      }
    }
    const int cells = count - this_lane() * warp_size;
    return __all_sync(all_lanes, bits == (cells < 0 ? 0 : bits_below(cells < 32 ? cells : 32)));
  }

 private:
  static constexpr int passes = Held ? Chunks : 8;  // written out one after another

  __device__ static int place(int c) { return c * warp_size + this_lane(); }
  __device__ auto cell(int c) const {
    if constexpr (Held) {
      return number(held_[c]);
    } else {
      return number(map_[place(c)]);
    }
  }

  // Converted once; but a half as often as it is asked for where the next map is on its way, which
  // takes registers enough less.
  template <class U>
  __device__ static auto kept(U cell) {
    if constexpr (std::is_same_v<U, Float16> && Chunks < warp_size) {
      return cell;
    } else {
      return number(cell);
    }
  }

  T raw_[Held ? Chunks : 1];
  decltype(kept(T{})) held_[Held ? Chunks : 1];
  const T* map_;
};

// Writes the sum of a map, and its bits, a word of zeros and whether it is finite to `words`.
template <class T, class Cells>
__device__ void cut_to_words(const Cells& cells, int count, const StatsCall& call,
                             std::int64_t index, std::uint32_t* words) {
  const int chunks = (count + warp_size - 1) / warp_size;
  const double sum = cells.sum(count);
  std::uint32_t bits;
  double mean = sum / count;
  const bool all = cells.cut(count, cut_of(number(T{}), mean), bits);
  if (all) mean = cells.least(count);
  if (all || call.cut != Cut::mean) {
    cells.cut(count, cut_of(number(T{}), level_at(mean, call.cut)), bits);
  }
  if (this_lane() < chunks) words[this_lane()] = bits;
  if (this_lane() == 0) {
    words[chunks] = 0;
    words[chunks + 1] = is_finite(sum);
    if (call.sums != nullptr) call.sums[index] = rounded_sum(sum);
  }
}

__device__ inline bool is_finite_in(const std::uint32_t* words, int count) {
  return words[(count + warp_size - 1) / warp_size + 1] != 0;
}

// The entropy of the map whose bits these are.
template <int Strips, int Side>
__device__ float entropy_of_words(const std::uint32_t* words, const Grid<Side>& grid,
                                  const StatsCall& call) {
  if (!is_finite_in(words, grid.cells())) return NAN;
  const auto mask = static_cast<std::uint32_t>(bits_below(grid.w));
  int foreground = 0;
  const auto row = [&](int i) -> std::uint32_t {
    if (i >= grid.h) return 0;
    const int at = i * grid.w;
    const std::uint64_t high = words[at / 32 + 1];
    const auto bits = static_cast<std::uint32_t>((high << 32 | words[at / 32]) >> at % 32) & mask;
    foreground += __popc(bits);
    return bits;
  };
  LaneFlood<Strips> flood(call.n_ln_n, row);
  const std::uint64_t sum = flood.run();
  return entropy_of_areas(foreground, call.n_ln_n[foreground], sum, call.nothing);
}

// Whether the compiler finds registers for two maps of 24 x 24 cells: for Ampere, of halves only.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class T>
constexpr bool fits_next_map = std::is_same_v<T, Float16>;
#else
template <class T>
constexpr bool fits_next_map = true;
#endif

// Each warp loads `share` maps: 32, or so few that one warp floods those of the whole block.
template <class T, int Strips, int Side>
__global__ void __launch_bounds__(256, 2) stats_by_lane(StatsCall call, int share) {
  auto* shared = static_cast<std::uint32_t*>(shared_memory());
  const Maps& maps = call.maps;
  const Grid<Side> grid(maps);
  const int count = grid.cells();
  const int pitch = words_a_map(count);
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int warps = static_cast<int>(blockDim.x) / warp_size;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * warps * share;

  // Registers hold the cells, and those of the next map, if these are not too many.
  constexpr bool held = Strips <= 12;
  constexpr bool ahead = held && (Strips <= 8 || fits_next_map<T>);
  LaneCells<T, 2 * Strips, held> next;
  const int from = warp * share;
  if (ahead && begin + from < maps.count) next.load(maps.map<T>(begin + from), count);
  for (int m = from; m < from + share && begin + m < maps.count; ++m) {
    if (!ahead) next.load(maps.map<T>(begin + m), count);
    auto cells = next;
    cells.arrive();
    if (ahead && m + 1 < from + share && begin + m + 1 < maps.count) {
      next.load(maps.map<T>(begin + m + 1), count);
    }
    cut_to_words<T>(cells, count, call, begin + m, shared + m * pitch);
  }
  if (share == warp_size) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  const int own = static_cast<int>(threadIdx.x);
  if (own < warps * share && begin + own < maps.count) {
    call.entropies[begin + own] = entropy_of_words<Strips>(shared + own * pitch, grid, call);
  }
}

// The sums alone, of grids of any size.
template <class T>
__global__ void sums_by_warp(Maps maps, float* sums) {
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / warp_size);
  const int count = maps.grid_h * maps.grid_w;
  std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  for (index /= warp_size; index < maps.count; index += warps) {
    const T* cells = maps.map<T>(index);
    const double sum = sum_of(cells, count);
    if (this_lane() == 0) sums[index] = rounded_sum(sum);
  }
}

}  // namespace
}  // namespace fastground
