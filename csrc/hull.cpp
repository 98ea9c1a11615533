#include "hull.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fastground {
namespace {

using Point = BoxesWorkspace::Point;
using Region = BoxesWorkspace::Region;
using Chain = std::vector<Point>;

std::int64_t turn(Point a, Point b, Point c) {
  return std::int64_t{b.x - a.x} * (c.y - a.y) - std::int64_t{b.y - a.y} * (c.x - a.x);
}

// Appends a corner on the next grid line and drops those that are then no corners of the hull;
// side is +1 for the left chain, -1 for the right.
void append(Chain& chain, Point corner, int side) {
  while (chain.size() > 1 && side * turn(chain[chain.size() - 2], chain.back(), corner) >= 0) {
    chain.pop_back();
  }
  chain.push_back(corner);
}

// Twice the area between the line x = 0 and a chain.
std::int64_t twice_area(const Chain& chain) {
  std::int64_t area = 0;
  for (std::size_t i = 1; i < chain.size(); ++i) {
    area += std::int64_t{chain[i - 1].x + chain[i].x} * (chain[i].y - chain[i - 1].y);
  }
  return area;
}

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }

// The hull's chains of the cells that carry `label`; returns twice its area.
std::int64_t hull_of(const std::int32_t* labels, int grid_w, const Region& region,
                     std::int32_t label, Chain& left, Chain& right) {
  left.clear();
  right.clear();
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
    append(left, {std::min(first, above_first), i}, +1);
    append(right, {std::max(last, above_last), i}, -1);
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
    for (std::size_t e = 1; e < chain->size(); ++e) {
      const Point a = (*chain)[e - 1];
      const Point b = (*chain)[e];
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
void measure(const double* cells, int grid_h, int grid_w, bool merge, std::int32_t* labels,
             std::vector<Region>& regions) {
  std::fill(regions.begin(), regions.end(), Region{grid_h, grid_w, 0, 0, 0, 0.0});
  for (int i = 0; i < grid_h; ++i) {
    for (int j = 0; j < grid_w; ++j) {
      std::int32_t& label = labels[i * grid_w + j];
      if (label == 0) continue;
      if (merge) label = 1;
      Region& region = regions[label - 1];
      region.top = std::min(region.top, i);
      region.left = std::min(region.left, j);
      region.bottom = i + 1;
      region.right = std::max(region.right, j + 1);
      region.cells += 1;
      region.sum += cells[i * grid_w + j];
    }
  }
}

// The region to keep, and what it was chosen by.
std::pair<int, double> choose(Keep keep, int grid_w, BoxesWorkspace& w) {
  int best = -1;
  double best_size = 0;
  for (int r = 0; r < static_cast<int>(w.regions.size()); ++r) {
    const Region& region = w.regions[r];
    double size = keep == Keep::mass ? region.sum : region.cells;
    if (keep == Keep::hull) {
      // A hull lies within its box, so a smaller box need not be looked at.
      if ((region.bottom - region.top) * (region.right - region.left) < best_size) continue;
      size = 0.5 *
             static_cast<double>(hull_of(w.labels.data(), grid_w, region, r + 1, w.left, w.right));
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
std::pair<Share, Share> split(Keep keep, int kept, int grid_w, BoxesWorkspace& w) {
  const Region& region = w.regions[kept];
  if (keep == Keep::hull) {
    hull_of(w.labels.data(), grid_w, region, kept + 1, w.left, w.right);
    centres_between(w.left, w.right, w.first.data(), w.last.data());
  }
  Share inside;
  Share outside;
  const int grid_h = static_cast<int>(w.first.size());
  for (int i = 0, c = 0; i < grid_h; ++i) {
    const bool in_rows = i >= region.top && i < region.bottom;
    for (int j = 0; j < grid_w; ++j, ++c) {
      if (w.valid[c] == 0) continue;
      const bool in = keep == Keep::hull ? in_rows && j >= w.first[i] && j < w.last[i]
                                         : w.labels[c] == kept + 1;
      (in ? inside : outside).add(w.cells[c]);
    }
  }
  return {inside, outside};
}

}  // namespace

BoxesWorkspace::BoxesWorkspace(int grid_h, int grid_w) : components(grid_h, grid_w) {
  const auto count = static_cast<std::size_t>(grid_h * grid_w);
  cells.resize(count);
  valid.resize(count);
  labels.resize(count);
  regions.reserve(static_cast<std::size_t>((grid_h + 1) / 2 * ((grid_w + 1) / 2)));
  first.resize(static_cast<std::size_t>(grid_h));
  last.resize(static_cast<std::size_t>(grid_h));
  left.reserve(static_cast<std::size_t>(grid_h + 1));
  right.reserve(static_cast<std::size_t>(grid_h + 1));
}

void find_boxes(const MapView& combined, const MapView& valid, Keep keep, BoxesWorkspace& w,
                const BoxesOut& out) {
  const int grid_h = combined.grid_h;
  const int grid_w = combined.grid_w;
  for (std::int64_t index = 0; index < combined.count; ++index) {
    float* xyxy = out.xyxy + 4 * index;
    std::fill(xyxy, xyxy + 4, 0.0f);
    out.area[index] = out.mass[index] = out.score[index] = 0;
    out.found[index] = false;

    read_map(combined, index, w.cells.data());
    if (!std::isfinite(sum_cells(w.cells.data(), combined.cells()))) {
      out.mass[index] = out.score[index] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    read_map(valid, index, w.valid.data());
    Share all;
    for (int c = 0; c < combined.cells(); ++c) {
      if (w.valid[c] != 0) all.add(w.cells[c]);
    }
    const double level = all.sum / all.cells;  // NaN without valid cells: nothing is found
    const int regions = w.components.find(w.cells.data(), level, w.valid.data());
    if (regions == 0) continue;
    w.components.write_labels(w.labels.data());
    w.regions.resize(keep == Keep::all ? 1 : static_cast<std::size_t>(regions));
    measure(w.cells.data(), grid_h, grid_w, keep == Keep::all, w.labels.data(), w.regions);
    const auto [best, size] = choose(keep, grid_w, w);
    const auto [inside, outside] = split(keep, best, grid_w, w);

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
}

}  // namespace fastground
