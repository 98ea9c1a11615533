#include "fixed_point.hpp"

#include <array>
#include <cmath>

namespace fastground {
namespace {

const auto table = [] {
  std::array<std::uint64_t, n_ln_n_known> values{};
  for (int n = 1; n < n_ln_n_known; ++n) values[n] = compute_n_ln_n(n);
  return values;
}();

}  // namespace

const std::uint64_t* const n_ln_n_table = table.data();

std::uint64_t compute_n_ln_n(int n) {
  return static_cast<std::uint64_t>(std::round(n * std::log(n) / fixed_point_unit));
}

}  // namespace fastground
