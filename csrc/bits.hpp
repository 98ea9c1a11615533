// A row of a grid as bits, and the way between rows and the bit stream of a map.
//
//     bit stream   0 1 1 0 0 1     64 cells a word, the first in the lowest bit
//     rows         [0 1 1]         one word, or four for more than 64 columns
//                  [0 0 1]
#pragma once

#include "anywhere.hpp"

namespace fastground {
namespace {

// Bits [0, end) of a word; none where end is negative, all where it is 64 or more.
FASTGROUND_ANYWHERE inline std::uint64_t bits_below(int end) {
  return end <= 0 ? 0 : ~std::uint64_t{0} >> (end < 64 ? 64 - end : 0);
}

// A row of 64 * Words columns, the first in the lowest bit.
template <int Words>
struct Bits {
  std::uint64_t word[Words] = {};

  // The columns [start, end), of which there is one at least.
  FASTGROUND_ANYWHERE static Bits span(int start, int end) {
    Bits bits;
    if constexpr (Words == 1) {
      bits.word[0] = ~std::uint64_t{0} >> (64 - (end - start)) << start;
    } else {
      for (int w = 0; w < Words; ++w) {
        bits.word[w] = bits_below(end - 64 * w) & ~bits_below(start - 64 * w);
      }
    }
    return bits;
  }
  FASTGROUND_ANYWHERE static Bits read(const std::uint64_t* from) {
    Bits bits;
    for (int w = 0; w < Words; ++w) bits.word[w] = from[w];
    return bits;
  }
  FASTGROUND_ANYWHERE void write(std::uint64_t* to) const {
    for (int w = 0; w < Words; ++w) to[w] = word[w];
  }

  FASTGROUND_ANYWHERE friend Bits operator&(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] &= b.word[w];
    return a;
  }
  FASTGROUND_ANYWHERE friend Bits operator|(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] |= b.word[w];
    return a;
  }
  // This without what `b` holds.
  FASTGROUND_ANYWHERE Bits without(const Bits& b) const {
    Bits result;
    for (int w = 0; w < Words; ++w) result.word[w] = word[w] & ~b.word[w];
    return result;
  }

  FASTGROUND_ANYWHERE bool any() const {
    std::uint64_t all = 0;
    for (const std::uint64_t w : word) all |= w;
    return all != 0;
  }
  FASTGROUND_ANYWHERE int count() const {
    int total = 0;
    for (const std::uint64_t w : word) total += bits_set(w);
    return total;
  }
  // The number of bits up to and with the first of `b`; all if that has none.
  FASTGROUND_ANYWHERE int count_through_first(const Bits& b) const {
    int total = 0;
    std::uint64_t before = ~std::uint64_t{0};  // all ones until the first of b
    for (int w = 0; w < Words; ++w) {
      total += bits_set(word[w] & before & (b.word[w] ^ (b.word[w] - 1)));
      before &= -std::uint64_t{b.word[w] == 0};
    }
    return total;
  }
  // The first and the last column that is set, of which there is one.
  FASTGROUND_ANYWHERE int first() const {
    int w = 0;
    while (w < Words - 1 && word[w] == 0) ++w;
    return 64 * w + lowest_bit(word[w]);
  }
  FASTGROUND_ANYWHERE int last() const {
    int w = Words - 1;
    while (w > 0 && word[w] == 0) --w;
    return 64 * w + highest_bit(word[w]);
  }
  // The lowest run of set bits: adding its lowest bit ripples a carry through the run and out.
  FASTGROUND_ANYWHERE Bits lowest_run() const {
    Bits result;
    bool carry = false;
    bool started = false;
    for (int w = 0; w < Words; ++w) {
      std::uint64_t add = carry ? 1 : 0;
      if (!started && word[w] != 0) {
        add = word[w] & (~word[w] + 1);
        started = true;
      }
      const std::uint64_t sum = word[w] + add;
      carry = sum < word[w];
      result.word[w] = word[w] & ~sum;
    }
    return result;
  }

  // Every bit one column further right, and left.
  FASTGROUND_ANYWHERE Bits right() const {
    Bits result;
    for (int w = 0; w < Words; ++w) {
      result.word[w] = word[w] << 1 | (w > 0 ? word[w > 0 ? w - 1 : 0] >> 63 : 0);
    }
    return result;
  }
  FASTGROUND_ANYWHERE Bits left() const {
    Bits result;
    for (int w = 0; w < Words; ++w) {
      result.word[w] = word[w] >> 1 | (w + 1 < Words ? word[w + 1 < Words ? w + 1 : 0] << 63 : 0);
    }
    return result;
  }
  FASTGROUND_ANYWHERE Bits widened() const { return *this | right() | left(); }
};

// The 64 bits from place `at` on of a bit stream that has a word behind it.
FASTGROUND_ANYWHERE inline std::uint64_t bits_from(const std::uint64_t* stream, int at) {
  return stream[at / 64] >> (at % 64) | stream[at / 64 + 1] << 1 << (63 - at % 64);
}

// Row `i` of such a stream.
template <int Words>
FASTGROUND_ANYWHERE Bits<Words> row_of(const std::uint64_t* stream, int i, int grid_w) {
  Bits<Words> row;
  for (int w = 0; w < Words && 64 * w < grid_w; ++w) {
    row.word[w] = bits_from(stream, i * grid_w + 64 * w) & bits_below(grid_w - 64 * w);
  }
  return row;
}

// Writes all rows of such a stream.
template <int Words>
void unpack_rows(const std::uint64_t* stream, int grid_h, int grid_w, std::uint64_t* rows) {
  for (int w = 0; w < Words; ++w) {
    const std::uint64_t mask = bits_below(grid_w - 64 * w);
    for (int i = 0, at = 64 * w; i < grid_h; ++i, at += grid_w) {
      rows[i * Words + w] = mask != 0 ? bits_from(stream, at) & mask : 0;
    }
  }
}

// Adds rows to a bit stream in which they are empty; the first of them is row `top`.
template <int Words>
void pack_rows(const std::uint64_t* rows, int top, int count, int grid_w, std::uint64_t* stream) {
  for (int w = 0; w < Words && 64 * w < grid_w; ++w) {
    for (int i = 0, at = top * grid_w + 64 * w; i < count; ++i, at += grid_w) {
      const std::uint64_t bits = rows[i * Words + w];
      stream[at / 64] |= bits << (at % 64);
      stream[at / 64 + 1] |= bits >> 1 >> (63 - at % 64);
    }
  }
}

}  // namespace
}  // namespace fastground
