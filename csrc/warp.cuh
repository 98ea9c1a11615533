// What the 32 lanes of a warp do together, and how a kernel is started.
//
// Every kernel is written for warps: a map belongs to a warp, or 32 maps to one. The sums of
// floating numbers are those of cells.hpp: cell i goes to lane i % 32, and lanes are folded in
// halves. A ballot or a shuffle orders no memory: what other lanes wrote or will write takes a
// barrier. Without any one of them there is a race (tests/cuda/test_cuda_races.py), but of those
// marked spare, whose work others do as well today.
#pragma once

#include <cstddef>
#include <launch.cuh>  // nvcc's, or that of tests/cuda

#include "anywhere.hpp"

namespace fastground {
namespace {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

__device__ inline int this_lane() { return static_cast<int>(threadIdx.x) % warp_size; }

template <class T>
__device__ T sum_of_lanes(T value) {
  for (int half = warp_size / 2; half > 0; half /= 2) {
    value += __shfl_xor_sync(all_lanes, value, half);
  }
  return value;
}

template <class T>
__device__ T least_of_lanes(T value) {
  for (int half = warp_size / 2; half > 0; half /= 2) {
    const T other = __shfl_xor_sync(all_lanes, value, half);
    value = other < value ? other : value;
  }
  return value;
}

template <class T>
__device__ T largest_of_lanes(T value) {
  for (int half = warp_size / 2; half > 0; half /= 2) {
    const T other = __shfl_xor_sync(all_lanes, value, half);
    value = other > value ? other : value;
  }
  return value;
}

// Memory of one warp, handed out piece by piece; from null it only counts.
class Arena {
 public:
  FASTGROUND_ANYWHERE explicit Arena(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  template <class T>
  FASTGROUND_ANYWHERE T* take(int count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    most_ = used_ > most_ ? used_ : most_;
    return piece;
  }

  // Gives back all that was taken since `used` was so much.
  FASTGROUND_ANYWHERE void back_to(std::size_t used) { used_ = used; }
  FASTGROUND_ANYWHERE std::size_t used() const { return used_; }
  FASTGROUND_ANYWHERE std::size_t most() const { return most_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
  std::size_t most_ = 0;
};

// The same pointer or number, of which the compiler no longer knows where it comes from: what is
// made of it is made here, not kept in registers over all that lies before.
template <class T>
__device__ T met_anew(T value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
#endif
  return value;
}

// A block's memory: in the workspace, if it was given one, else shared.
__device__ inline void* block_memory(void* workspace, std::size_t bytes) {
  if (workspace != nullptr) return static_cast<std::byte*>(workspace) + blockIdx.x * bytes;
  return shared_memory();
}

}  // namespace
}  // namespace fastground
