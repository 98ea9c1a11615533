// What both processors compute: functions marked FASTGROUND_ANYWHERE are compiled for the CPU by
// any compiler, and by nvcc for the GPU as well, so that each rule is written down once.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTGROUND_ANYWHERE __host__ __device__
#else
#define FASTGROUND_ANYWHERE
#endif

namespace fastground {
namespace {

template <class To, class From>
FASTGROUND_ANYWHERE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// The place of the lowest and of the highest bit that is set, of which there is one.
FASTGROUND_ANYWHERE inline int lowest_bit(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}
FASTGROUND_ANYWHERE inline int highest_bit(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(static_cast<long long>(bits));
#else
  return 63 - __builtin_clzll(bits);
#endif
}

FASTGROUND_ANYWHERE inline int bits_set(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

// Neither infinite nor NaN.
FASTGROUND_ANYWHERE inline bool is_finite(double value) { return value - value == 0; }

}  // namespace
}  // namespace fastground
