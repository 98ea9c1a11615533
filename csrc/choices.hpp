// The choices of the method by their numbers, as Python gives them.
#pragma once

#include <stdexcept>
#include <string>

#include "map_view.hpp"

namespace fastground {

constexpr int max_grid = 256;
constexpr std::int64_t max_taps = 65535;  // so that places in an extended map fit an int

// The choice of this number, which is one of `codes` of bindings.cpp.
template <class Choice>
Choice chosen(int code, Choice last) {
  if (code < 0 || code > static_cast<int>(last)) {
    throw std::invalid_argument("no choice has the number " + std::to_string(code));
  }
  return static_cast<Choice>(code);
}
inline Cut chosen_cut(int code) { return chosen(code, Cut::two_mean_eps); }

}  // namespace fastground
