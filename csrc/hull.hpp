// The convex hull of a region: of the corners of its cells, so that a single cell has area 1.
//
// Only the outermost corners of each grid line can be on it; taken from top to bottom they make a
// left and a right chain, both monotone, and each needs one pass (Andrew's monotone chain):
//
//     line 0   +---+               left chain   (1,0) (0,1) (0,2)
//     line 1   +-+-+-+   cells     right chain  (2,0) (3,1) (3,2)
//     line 2   +-----+
//
// All corners are whole numbers: areas and the question whether a cell's centre lies in a hull are
// decided exactly.
#pragma once

#include "bits.hpp"
#include "scratch.hpp"

namespace fastground {
namespace {

struct Point {
  int x, y;
};

// Positive where the way from a over b to c turns right on the screen, y pointing down.
FASTGROUND_ANYWHERE inline int turn(Point a, Point b, Point c) {
  return (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x);
}

// A centre (j + 1/2, i + 1/2) is right of the edge from a to b, which spans its row, where
// (2 j + 1) dy >= 2 a.x dy + (2 i + 1 - 2 a.y) dx, the bound.
FASTGROUND_ANYWHERE inline int bound(Point a, Point b, int i) {
  return 2 * a.x * (b.y - a.y) + (2 * (i - a.y) + 1) * (b.x - a.x);
}

// a / b rounded down, for 0 <= a < 2^19 and 0 < b <= 512: a quotient that is not whole is further
// from a whole number than float32 rounds, and its division is the faster one.
FASTGROUND_ANYWHERE inline int quotient(int a, int b) {
  return static_cast<int>(static_cast<float>(a) / static_cast<float>(b));
}

// The cells [first, last) of row i whose centre lies between two edges that span it.
template <int Words>
FASTGROUND_ANYWHERE Bits<Words> cells_between(Point left, Point left_end, Point right,
                                              Point right_end, int i) {
  const int left_dy = left_end.y - left.y;
  const int right_dy = right_end.y - right.y;
  const int first = quotient(bound(left, left_end, i) + left_dy - 1, 2 * left_dy);
  const int last = quotient(bound(right, right_end, i) + right_dy, 2 * right_dy);
  return Bits<Words>::span(first, last);
}

class Hull {
 public:
  Hull(Scratch& scratch, int grid_h)
      : first_(scratch.take<int>(grid_h + 1)),
        last_(scratch.take<int>(grid_h + 1)),
        left_{scratch.take<Point>(grid_h + 1), 0},
        right_{scratch.take<Point>(grid_h + 1), 0} {}

  // Of the cells in rows [top, bottom), each of which holds one; returns twice the area.
  template <int Words>
  int enclose(const std::uint64_t* rows, int top, int bottom) {
    int above_first = 64 * Words;
    int above_last = 0;
    for (int i = top; i < bottom; ++i) {
      const auto row = Bits<Words>::read(&rows[i * Words]);
      const int first = row.first();
      const int last = row.last() + 1;
      first_[i] = first < above_first ? first : above_first;
      last_[i] = last > above_last ? last : above_last;
      above_first = first;
      above_last = last;
    }
    first_[bottom] = above_first;
    last_[bottom] = above_last;
    connect<+1>(first_, top, bottom, left_);
    connect<-1>(last_, top, bottom, right_);
    return twice_area(right_) - twice_area(left_);
  }

  // Writes to rows [top, bottom), those it was made of, the cells whose centre lies within.
  template <int Words>
  void fill(std::uint64_t* rows, int top, int bottom) const {
    const Point* left = left_.points;
    const Point* right = right_.points;
    for (int i = top; i < bottom; ++i) {
      left += i >= left[1].y;
      right += i >= right[1].y;
      cells_between<Words>(left[0], left[1], right[0], right[1], i).write(&rows[i * Words]);
    }
  }

 private:
  // One side, from top to bottom.
  struct Chain {
    Point* points;
    int size;
  };

  // The chain of the outermost corners of the grid lines top to bottom; side is +1 for the left
  // one, -1 for the right. A corner between its two neighbours' line and the hull is none: most go
  // without a branch, the others when the chain turns back to them.
  template <int Side>
  static void connect(const int* corners, int top, int bottom, Chain& chain) {
    Point* points = chain.points;
    int count = 0;
    points[count++] = {corners[top], top};
    for (int i = top + 1; i < bottom; ++i) {
      points[count] = {corners[i], i};
      count += Side * (2 * corners[i] - corners[i - 1] - corners[i + 1]) < 0;
    }
    points[count++] = {corners[bottom], bottom};
    int size = 1;
    for (int k = 1; k < count; ++k) {
      const Point corner = points[k];
      while (size > 1 && Side * turn(points[size - 2], points[size - 1], corner) >= 0) --size;
      points[size++] = corner;
    }
    chain.size = size;
  }

  // Twice the area between the line x = 0 and a chain.
  static int twice_area(const Chain& chain) {
    int area = 0;
    for (int i = 1; i < chain.size; ++i) {
      const Point a = chain.points[i - 1];
      const Point b = chain.points[i];
      area += (a.x + b.x) * (b.y - a.y);
    }
    return area;
  }

  int* first_;  // the outermost corners of each grid line
  int* last_;
  Chain left_, right_;
};

}  // namespace
}  // namespace fastground
