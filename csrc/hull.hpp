// The region of a combined map that is kept, its convex hull and its tight box.
//
// A hull is that of its cells' corners, so a single cell has hull area 1. Only the outermost
// corners of each grid line can be on it; taken from top to bottom they make a left and a right
// chain, both monotone, and each needs one pass (Andrew's monotone chain):
//
//     line 0   +---+               left chain   (1,0) (0,1) (0,2)
//     line 1   +-+-+-+   cells     right chain  (2,0) (3,1) (3,2)
//     line 2   +-----+
//
// All corners are whole numbers: areas and the question whether a cell's centre lies in a hull are
// decided exactly.
#pragma once

#include "components.hpp"
#include "map_view.hpp"

namespace fastground {

// Which region is kept: by hull area, by cells, by sum, or all foreground as one.
enum class Keep { hull, component, mass, all };

struct BoxesOut {
  float* xyxy;   // four a map: x1, y1, x2, y2 in cells, half-open; zeros where nothing is found
  float* area;   // of the hull, or the number of cells
  float* mass;   // share of the map's sum
  float* score;  // mean inside over mean outside, +inf if that is 0 or nothing lies outside
  bool* found;
};

// Working memory for grids of one size; made once, used for every map.
struct BoxesWorkspace {
  BoxesWorkspace(int grid_h, int grid_w);

  struct Region {
    int top, left, bottom, right;  // half-open
    int cells;
    double sum;
  };
  struct Point {
    int x, y;
  };

  Components components;
  std::vector<double> cells;
  std::vector<double> valid;
  std::vector<std::int32_t> labels;
  std::vector<Region> regions;
  std::vector<int> first, last;  // the inside columns [first, last) of each grid row
  std::vector<Point> left, right;
};

// The box of each combined map. Foreground is what exceeds the mean of the valid cells; of its
// 8-connected regions the largest is kept, of equals the one of larger sum, then the first in
// raster order. The region's cells are its own, or with Keep::hull all valid cells whose centre
// lies in the hull; mass and score see valid cells only. A map whose sum is not finite has no box
// and NaN for mass and score.
//
// valid: boolean, of the same count and grid as combined; a stride may be 0.
void find_boxes(const MapView& combined, const MapView& valid, Keep keep, BoxesWorkspace& workspace,
                const BoxesOut& out);

}  // namespace fastground
