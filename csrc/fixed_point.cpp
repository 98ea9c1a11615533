#include "fixed_point.hpp"

#include <array>

namespace fastground {
namespace {

const auto table = [] {
  std::array<std::uint64_t, n_ln_n_known> values{};
  for (int n = 1; n < n_ln_n_known; ++n) values[n] = compute_n_ln_n(n);
  return values;
}();

}  // namespace

const std::uint64_t* const n_ln_n_table = table.data();

}  // namespace fastground
