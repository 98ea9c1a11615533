// Takes regions of one and of two cells out of many binary maps at once, before the flood.
//
// They are half of all regions of real attention maps, and each would cost the flood a visit. A
// cell without neighbours is a region. A cell with exactly one neighbour, which has exactly one
// itself, is half of a region of two. The eight neighbours are counted in bits, as none, one or
// more: of three cells in a row `some` are set, and at least `two`.
//
//     # . .      no neighbour: a region of one cell
//     . . #      one neighbour each: a region of two
//     . # .
#pragma once

#include "anywhere.hpp"

namespace fastground {
namespace {

// Of lanes of words, as said in flood_step.hpp.
template <class Lanes>
class Pruner {
  using V = typename Lanes::V;

 public:
  // Rows come from the top; next() takes row i + 1 (0 behind the last) and gives what is left of
  // row i - 1.
  FASTGROUND_ANYWHERE V next(V row) {
    const V left = row << 1;
    const V right = row >> 1;
    const Three below = {row | left | right, (row & left) | (row & right) | (left & right)};
    const V beside = beside_;
    const V some = above_.some | below.some | beside;
    const V two = above_.two | below.two | beside_two_ | (above_.some & below.some) |
                  (above_.some & beside) | (below.some & beside);
    const V one = row_ & some & ~two;

    // Now the cells with one neighbour are known for three rows.
    const V near = one_above_ | one_above_ << 1 | one_above_ >> 1 | one | one << 1 | one >> 1;
    const V pairs = one_ & (near | one_ << 1 | one_ >> 1);
    halves += Lanes::popcount(pairs);
    const V rest = crowded_ & ~pairs;

    one_above_ = one_;
    one_ = one;
    crowded_ = row_ & some;
    above_ = here_;
    here_ = below;
    beside_ = left | right;
    beside_two_ = left & right;
    row_ = row;
    return rest;
  }

  V halves{};  // cells taken out as half of a region of two

 private:
  struct Three {
    V some, two;
  };

  V row_{};  // row i
  V beside_{}, beside_two_{};
  Three above_{}, here_{};  // of rows i - 1 and i, with their neighbours left and right
  V one_above_{}, one_{};   // cells of rows i - 2 and i - 1 with exactly one neighbour
  V crowded_{};             // cells of row i - 1 with any
};

}  // namespace
}  // namespace fastground
