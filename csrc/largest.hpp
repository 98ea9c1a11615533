// The largest magnitude of all cells: of two numbers without their signs the larger is the one with
// the larger bits, and those of infinity and NaN are larger than all. So it is a maximum of
// integers, a loop that every compiler turns into one instruction for a register of cells.
#pragma once

#include <type_traits>

#include "cells.hpp"

namespace fastground {
namespace {

// The signed integer of the size of T.
template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 2, std::int16_t,
                                  std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>>;

// Infinity if a cell is not finite.
double largest(const MapView& maps, void* memory) {
  return with_number_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    using Bits = BitsOf<T>;
    constexpr Bits without_sign = std::numeric_limits<Bits>::max();
    Scratch scratch(memory);
    const int count = maps.grid_h * maps.grid_w;
    T* buffer = scratch.take<T>(count);
    Bits most = 0;
    for (std::int64_t index = 0; index < maps.count; ++index) {
      const T* cells = contiguous(maps, index, buffer);
      for (int c = 0; c < count; ++c) {
        const Bits bits = bit_cast<Bits>(cells[c]) & without_sign;
        most = bits > most ? bits : most;
      }
    }
    const double number = to_double(bit_cast<T>(most));
    return number == number ? number : std::numeric_limits<double>::infinity();
  });
}

}  // namespace
}  // namespace fastground
