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

#include <initializer_list>

#include "components.hpp"
#include "smooth.hpp"

namespace fastground {
namespace {

struct Region {
  int top, left, bottom, right;  // half-open
  int cells;
  double sum;
};

struct Point {
  int x, y;
};

// One side of a hull, from top to bottom.
struct Chain {
  Point* points;
  int size;
};

// Working memory for grids of one size.
struct BoxesWorkspace {
  BoxesWorkspace(Scratch& scratch, int grid_h, int grid_w, int taps)
      : smoother(scratch, grid_h, grid_w, taps),
        components(scratch, grid_h, grid_w),
        cells(scratch.take<float>(grid_h * grid_w)),
        valid(scratch.take<bool>(grid_h * grid_w)),
        labels(scratch.take<std::int32_t>(grid_h * grid_w)),
        stream(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        valid_stream(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        regions(scratch.take<Region>((grid_h + 1) / 2 * ((grid_w + 1) / 2))),
        first(scratch.take<int>(grid_h)),
        last(scratch.take<int>(grid_h)),
        left{scratch.take<Point>(grid_h + 1), 0},
        right{scratch.take<Point>(grid_h + 1), 0} {}

  Smoother smoother;
  Components components;
  float* cells;  // the combined map
  bool* valid;
  std::int32_t* labels;
  std::uint64_t* stream;
  std::uint64_t* valid_stream;
  Region* regions;
  int num_regions = 0;
  int* first;  // the inside columns [first, last) of each grid row
  int* last;
  Chain left, right;
};

std::int64_t turn(Point a, Point b, Point c) {
  return std::int64_t{b.x - a.x} * (c.y - a.y) - std::int64_t{b.y - a.y} * (c.x - a.x);
}

// Appends a corner on the next grid line and drops those that are then no corners of the hull;
// side is +1 for the left chain, -1 for the right.
void append(Chain& chain, Point corner, int side) {
  Point* end = chain.points + chain.size;
  while (end - chain.points > 1 && side * turn(end[-2], end[-1], corner) >= 0) --end;
  *end++ = corner;
  chain.size = static_cast<int>(end - chain.points);
}

// Twice the area between the line x = 0 and a chain.
std::int64_t twice_area(const Chain& chain) {
  std::int64_t area = 0;
  for (int i = 1; i < chain.size; ++i) {
    const Point a = chain.points[i - 1];
    const Point b = chain.points[i];
    area += std::int64_t{a.x + b.x} * (b.y - a.y);
  }
  return area;
}

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

// The hull's chains of the cells that carry `label`; returns twice its area.
std::int64_t hull_of(const std::int32_t* labels, int grid_w, const Region& region,
                     std::int32_t label, Chain& left, Chain& right) {
  left.size = 0;
  right.size = 0;
  int above_first = grid_w;
  int above_last = 0;
  for (int i = region.top; i <= region.bottom; ++i) {
    int first = grid_w;
    int last = 0;
    if (i < region.bottom) {
      const std::int32_t* row = labels + i * grid_w;
      first = region.left;
      while (row[first] != label) ++first;  // a region has a cell in each of its rows
      last = region.right;
      while (row[last - 1] != label) --last;
    }
    append(left, {first < above_first ? first : above_first, i}, +1);
    append(right, {last > above_last ? last : above_last, i}, -1);
    above_first = first;
    above_last = last;
  }
  return twice_area(right) - twice_area(left);
}

// For each row the columns [first, last) whose centres lie between the chains. A centre
// (j + 1/2, i + 1/2) is right of the edge from a to b, which spans the row, where
// (2j + 1) dy >= 2 a.x dy + (2i + 1 - 2 a.y) dx.
void centres_between(const Chain& left, const Chain& right, int* first, int* last) {
  for (const Chain* chain : {&left, &right}) {
    for (int e = 1; e < chain->size; ++e) {
      const Point a = chain->points[e - 1];
      const Point b = chain->points[e];
      const std::int64_t dx = b.x - a.x;
      const std::int64_t dy = b.y - a.y;
      for (int i = a.y; i < b.y; ++i) {
        const std::int64_t bound = 2 * a.x * dy + (2 * i + 1 - 2 * a.y) * dx - dy;
        if (chain == &left) {
          first[i] = static_cast<int>(-floor_div(-bound, 2 * dy));
        } else {
          last[i] = static_cast<int>(floor_div(bound, 2 * dy)) + 1;
        }
      }
    }
  }
}

// The extent, cells and sum of every region; with `merge` all foreground is region 1.
void measure(int grid_h, int grid_w, bool merge, BoxesWorkspace& w) {
  for (int r = 0; r < w.num_regions; ++r) w.regions[r] = {grid_h, grid_w, 0, 0, 0, 0.0};
  for (int i = 0; i < grid_h; ++i) {
    for (int j = 0; j < grid_w; ++j) {
      std::int32_t& label = w.labels[i * grid_w + j];
      if (label == 0) continue;
      if (merge) label = 1;
      Region& region = w.regions[label - 1];
      if (i < region.top) region.top = i;
      if (j < region.left) region.left = j;
      region.bottom = i + 1;
      if (j >= region.right) region.right = j + 1;
      region.cells += 1;
      region.sum += w.cells[i * grid_w + j];
    }
  }
}

// The region to keep, and what it was chosen by.
struct Choice {
  int region;
  double size;
};

Choice choose(Keep keep, int grid_w, BoxesWorkspace& w) {
  int best = -1;
  double best_size = 0;
  for (int r = 0; r < w.num_regions; ++r) {
    const Region& region = w.regions[r];
    double size = keep == Keep::mass ? region.sum : region.cells;
    if (keep == Keep::hull) {
      // A hull lies within its box, so a smaller box need not be looked at.
      if ((region.bottom - region.top) * (region.right - region.left) < best_size) continue;
      size = 0.5 * static_cast<double>(hull_of(w.labels, grid_w, region, r + 1, w.left, w.right));
    }
    if (best < 0 || size > best_size || (size == best_size && region.sum > w.regions[best].sum)) {
      best = r;
      best_size = size;
    }
  }
  return {best, best_size};
}

struct Share {
  double sum = 0;
  int cells = 0;

  void add(double value) {
    sum += value;
    cells += 1;
  }
};

// The valid cells inside the kept region and outside it.
struct Split {
  Share inside;
  Share outside;
};

Split split(Keep keep, int kept, int grid_h, int grid_w, BoxesWorkspace& w) {
  const Region& region = w.regions[kept];
  if (keep == Keep::hull) {
    hull_of(w.labels, grid_w, region, kept + 1, w.left, w.right);
    centres_between(w.left, w.right, w.first, w.last);
  }
  Share inside;
  Share outside;
  for (int i = 0, c = 0; i < grid_h; ++i) {
    const bool in_rows = i >= region.top && i < region.bottom;
    for (int j = 0; j < grid_w; ++j, ++c) {
      if (!w.valid[c]) continue;
      const bool in = keep == Keep::hull ? in_rows && j >= w.first[i] && j < w.last[i]
                                         : w.labels[c] == kept + 1;
      (in ? inside : outside).add(w.cells[c]);
    }
  }
  return {inside, outside};
}

std::int64_t boxes(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                   Keep keep, void* memory, const BoxesOut& out) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int count = grid_h * grid_w;
  Scratch scratch(memory);
  BoxesWorkspace w(scratch, grid_h, grid_w, taps.count);
  std::int64_t not_finite = 0;
  for (std::int64_t index = 0; index < maps.count / heads; ++index) {
    float* xyxy = out.xyxy + 4 * index;
    for (int i = 0; i < 4; ++i) xyxy[i] = 0;
    out.area[index] = out.mass[index] = out.score[index] = 0;
    out.found[index] = false;

    if (!combine_one(maps, index * heads, heads, taps, w.smoother, w.cells) ||
        !std::isfinite(sum_of(w.cells, count))) {
      out.mass[index] = out.score[index] = static_cast<float>(not_a_number);
      not_finite += 1;
      continue;
    }
    const bool* usable = contiguous(valid, index, w.valid);
    Share all;
    for (int c = 0; c < count; ++c) {
      w.valid[c] = usable[c];
      if (usable[c]) all.add(w.cells[c]);
    }
    if (all.cells == 0) continue;
    double level = all.sum / all.cells;
    double least = std::numeric_limits<double>::infinity();
    for (int c = 0; c < count; ++c) {
      if (usable[c] && w.cells[c] < least) least = w.cells[c];
    }
    if (level < least) level = least;
    cut_cells(w.cells, count, cut_of(float{}, level), w.stream);
    cut_cells(w.valid, count, false, w.valid_stream);
    for (int i = 0; i < stream_words(count); ++i) w.stream[i] &= w.valid_stream[i];
    const int regions = w.components.find(w.stream);
    if (regions == 0) continue;
    w.components.write_labels(w.labels);
    w.num_regions = keep == Keep::all ? 1 : regions;
    measure(grid_h, grid_w, keep == Keep::all, w);
    const auto [best, size] = choose(keep, grid_w, w);
    const auto [inside, outside] = split(keep, best, grid_h, grid_w, w);

    const Region& kept = w.regions[best];
    xyxy[0] = static_cast<float>(kept.left);
    xyxy[1] = static_cast<float>(kept.top);
    xyxy[2] = static_cast<float>(kept.right);
    xyxy[3] = static_cast<float>(kept.bottom);
    out.area[index] = static_cast<float>(keep == Keep::hull ? size : kept.cells);
    out.mass[index] = static_cast<float>(inside.sum / all.sum);
    out.score[index] = std::numeric_limits<float>::infinity();
    if (outside.cells > 0) {
      out.score[index] =
          static_cast<float>((inside.sum / inside.cells) / (outside.sum / outside.cells));
    }
    out.found[index] = true;
  }
  return not_finite;
}

}  // namespace
}  // namespace fastground
