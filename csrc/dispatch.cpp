#include <cstring>
#include <initializer_list>

#ifdef FASTGROUND_X86
#include <cpuid.h>
#endif

#include "kernels.hpp"

namespace fastground {
#ifdef FASTGROUND_X86
namespace {

// What not every compiler's __builtin_cpu_supports can be asked for; asked once, since on virtual
// machines the question itself takes long.
bool has_f16c_and_lzcnt() {
  static const bool has = [] {
    unsigned a, b, c, d;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    return f16c && __get_cpuid(0x80000001, &a, &b, &c, &d) != 0 && (c & bit_LZCNT) != 0;
  }();
  return has;
}

// Haswell, Zen and later. All that CMakeLists.txt compiles for is asked for.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") && has_f16c_and_lzcnt();
}

// Ice Lake, Zen 4 and later. Without the bit permutations of GFNI and VBMI2, AVX2 is taken.
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vpopcntdq") &&
         __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("gfni");
}

}  // namespace
#endif

const Kernels* kernels_named(const char* name) {
#ifdef FASTGROUND_X86
  if (std::strcmp(name, "avx512") == 0) return has_avx512() ? &avx512_kernels : nullptr;
  if (std::strcmp(name, "avx2") == 0) return has_avx2() ? &avx2_kernels : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? &portable_kernels : nullptr;
}

const Kernels& best_kernels() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* found = kernels_named(name)) return *found;
  }
  return portable_kernels;
}

}  // namespace fastground
