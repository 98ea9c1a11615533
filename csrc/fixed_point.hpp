// n ln n in whole units of 2^-44: sums of it do not depend on the order of addition.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastground {

constexpr double fixed_point_unit = 0x1p-44;

// The table's end; every region of a grid of 64 x 256 cells is below.
constexpr int n_ln_n_known = 64 * 256 + 1;
extern const std::uint64_t* const n_ln_n_table;

namespace {

inline std::uint64_t compute_n_ln_n(int n) {
  return static_cast<std::uint64_t>(
      std::round(n * std::log(static_cast<double>(n)) / fixed_point_unit));
}

inline std::uint64_t n_ln_n(int n) {
  return n < n_ln_n_known ? n_ln_n_table[n] : compute_n_ln_n(n);
}

}  // namespace
}  // namespace fastground
