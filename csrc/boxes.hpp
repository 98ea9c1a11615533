// The region of a combined map that is kept, its tight box, and what supports it.
//
//     combined map -> cut at the mean of the valid cells -> bits -> regions -> the largest
//                                                                                 |
//     mass, score  <- sums inside and outside            <- bits of the cells  <--+
//
// All is done on bits: a region is rows of them, and its box and the row ends that span its hull
// are the first and last bits of these rows. A hull lies in its region's box and holds its cells,
// so only regions are hulled whose box exceeds the most cells of any: most often one. Sums are only
// taken of what needs them, the cells picked by bits in the order of cells.hpp; that outside is
// summed as such, not as the rest, keeps it exact where it is 0.
#pragma once

#include "components.hpp"
#include "foreground.hpp"
#include "hull.hpp"
#include "smooth.hpp"

namespace fastground {
namespace {

// Working memory for grids of one size.
struct BoxesWorkspace {
  BoxesWorkspace(Scratch& scratch, int grid_h, int grid_w, int taps)
      : smoother(scratch, grid_h, grid_w, taps),
        components(scratch, grid_h, grid_w),
        hull(scratch, grid_h),
        cells(scratch.take<float>(grid_h * grid_w)),
        inside(scratch.take<float>(grid_h * grid_w)),
        mask(scratch.take<bool>(grid_h * grid_w)),
        valid(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        stream(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        outside(scratch.take<std::uint64_t>(stream_words(grid_h * grid_w))),
        rows(scratch.take<std::uint64_t>((grid_h + 1) * (grid_w <= 64 ? 1 : 4))),
        sizes(scratch.take<double>((grid_h + 1) / 2 * ((grid_w + 1) / 2))),
        sums(scratch.take<double>((grid_h + 1) / 2 * ((grid_w + 1) / 2))) {}

  Smoother smoother;
  Components components;
  Hull hull;
  float* cells;   // the combined map; later 0 where it is not valid, then where it is kept
  float* inside;  // the kept cells, else 0
  bool* mask;
  std::uint64_t* valid;
  std::uint64_t* stream;   // the foreground, then what is kept
  std::uint64_t* outside;  // the valid cells that are not kept
  std::uint64_t* rows;     // of the kept region
  double* sizes;           // of each region, what the largest is chosen by
  double* sums;            // of each region
};

// The region that is kept; its rows are in the workspace.
struct Kept {
  Region box;
  double area;
};

int count_bits(const std::uint64_t* stream, int words) {
  int total = 0;
  for (int i = 0; i < words; ++i) total += __builtin_popcountll(stream[i]);
  return total;
}

// Copies the cells whose bit is set, and 0 for the others; `to` may be where they are.
void pick(const float* cells, const std::uint64_t* stream, int count, float* to) {
  for (int i = 0; i < count; i += lanes<float>) {
    const auto mask = lanes_of<std::int32_t>(stream[i / 64] >> (i % 64));
    store(to + i, bit_cast<Vec<float>>(bit_cast<Vec<std::int32_t>>(load(cells + i)) & mask));
  }
}

// The mean of the cells whose bit is set, but at least the least of them, as in level_of.
double mean_of_bits(const float* cells, const std::uint64_t* stream, int words, double mean) {
  double least = std::numeric_limits<double>::infinity();
  for (int w = 0; w < words; ++w) {
    for (std::uint64_t bits = stream[w]; bits != 0; bits &= bits - 1) {
      const double cell = cells[64 * w + __builtin_ctzll(bits)];
      if (cell <= mean) return mean;
      if (cell < least) least = cell;
    }
  }
  return least;
}

// Of the regions of the largest size: that of the larger sum, then the first in raster order.
template <int Words>
int first_of_equals(Keep keep, double largest, int count, int grid_w, BoxesWorkspace& w) {
  if (keep != Keep::mass) w.components.add_cells(w.cells, w.sums);
  const double* sums = keep == Keep::mass ? w.sizes : w.sums;
  int best = -1;
  int best_cell = 0;
  for (int r = 0; r < count; ++r) {
    if (w.sizes[r] != largest) continue;
    w.components.write_rows<Words>(r, w.rows);
    const int top = w.components.region(r).top;
    const int cell = top * grid_w + Bits<Words>::read(&w.rows[top * Words]).first();
    if (best < 0 || sums[r] > sums[best] || (sums[r] == sums[best] && cell < best_cell)) {
      best = r;
      best_cell = cell;
    }
  }
  return best;
}

template <int Words>
int hull_of(int region, BoxesWorkspace& w) {
  const Region box = w.components.region(region);
  w.components.write_rows<Words>(region, w.rows);
  return w.hull.enclose<Words>(w.rows, box.top, box.bottom);
}

struct Largest {
  int region;
  int equals;  // how many are as large
};

// The last of the largest regions. No branch: how sizes compare cannot be predicted.
Largest largest_of(const double* sizes, int count) {
  double largest = sizes[0];
  for (int r = 1; r < count; ++r) largest = sizes[r] > largest ? sizes[r] : largest;
  Largest found = {0, 0};
  for (int r = 0; r < count; ++r) {
    const int is_largest = sizes[r] == largest;
    found.region += -is_largest & (r - found.region);
    found.equals += is_largest;
  }
  return found;
}

// Makes hull areas of the sizes, which are numbers of cells, but where even the box would not be
// enough for the largest, starting with `most`. Returns the region whose hull was taken last.
template <int Words>
int take_hulls(int most, int count, BoxesWorkspace& w) {
  double largest = w.sizes[most] = 0.5 * hull_of<Words>(most, w);
  int last = most;
  for (int r = 0; r < count; ++r) {
    const Region box = w.components.region(r);
    if ((box.bottom - box.top) * (box.right - box.left) < largest || r == most) continue;
    w.sizes[r] = 0.5 * hull_of<Words>(r, w);
    if (w.sizes[r] > largest) largest = w.sizes[r];
    last = r;
  }
  return last;
}

// Finds the largest of the regions and writes its cells to w.rows.
template <int Words>
Kept keep_largest(Keep keep, int grid_w, BoxesWorkspace& w) {
  const bool by_mass = keep == Keep::mass;
  const int count = by_mass ? w.components.find(w.stream) : w.components.find_larger(w.stream);
  if (by_mass) {
    w.components.add_cells(w.cells, w.sizes);
  } else {
    for (int r = 0; r < count; ++r) w.sizes[r] = w.components.areas()[r];
  }
  Largest largest = largest_of(w.sizes, count);
  int hulled = -1;
  if (keep == Keep::hull) {
    hulled = take_hulls<Words>(largest.region, count, w);
    largest = largest_of(w.sizes, count);
  }
  int best = largest.region;
  if (largest.equals > 1) {
    best = first_of_equals<Words>(keep, w.sizes[best], count, grid_w, w);
    hulled = -1;
  }
  const Region box = w.components.region(best);
  if (keep != Keep::hull) {
    w.components.write_rows<Words>(best, w.rows);
    return {box, static_cast<double>(box.cells)};
  }
  if (hulled != best) hull_of<Words>(best, w);
  w.hull.fill<Words>(w.rows, box.top, box.bottom);
  return {box, w.sizes[best]};
}

// All foreground as one region.
template <int Words>
Kept keep_all(int grid_h, int grid_w, BoxesWorkspace& w) {
  unpack_rows<Words>(w.stream, grid_h, grid_w, w.rows);
  Bits<Words> columns;
  Region box = {0, grid_h, 0, 0, 0};
  for (int i = 0; i < grid_h; ++i) {
    const auto row = Bits<Words>::read(&w.rows[i * Words]);
    if (!row.any()) continue;
    if (box.top > i) box.top = i;
    box.bottom = i + 1;
    box.cells += row.count();
    columns = columns | row;
  }
  box.left = columns.first();
  box.right = columns.last() + 1;
  return {box, static_cast<double>(box.cells)};
}

// Reads the valid cells of a combined map; returns how many there are.
int read_valid(const MapView& valid, std::int64_t index, BoxesWorkspace& w) {
  const int count = valid.grid_h * valid.grid_w;
  const bool* mask = w.mask;
  if (valid.stride_row == 0 && valid.stride_column == 0) {  // one cell that stands for all
    const bool all = *(static_cast<const bool*>(valid.data) + index * valid.stride_map);
    __builtin_memset(w.mask, all, count);
  } else {
    mask = contiguous(valid, index, w.mask);
  }
  read_mask(mask, count, w.valid);
  return count_bits(w.valid, stream_words(count));
}

// The sum of the valid cells of a finite map whose cells sum to `sum`; the other cells become 0.
double sum_valid(double sum, int num_valid, int count, BoxesWorkspace& w) {
  if (num_valid == count) return sum;
  pick(w.cells, w.valid, count, w.cells);
  return sum_of(w.cells, count);
}

// Writes the bits of the valid cells above their mean; returns whether there is any.
bool cut_valid(double sum, int num_valid, int count, BoxesWorkspace& w) {
  const int words = stream_words(count);
  const double level = num_valid == count ? level_of(w.cells, count, sum, Cut::mean)
                                          : mean_of_bits(w.cells, w.valid, words, sum / num_valid);
  cut_cells(w.cells, count, cut_of(0.0f, level), w.stream);
  std::uint64_t any = 0;
  for (int i = 0; i < words; ++i) any |= w.stream[i] &= w.valid[i];
  return any != 0;
}

// The valid cells inside the kept region and outside it.
struct Support {
  double mass;
  double score;
};

template <int Words>
Support support_of(const Kept& kept, double sum, int num_valid, int count, int grid_w,
                   BoxesWorkspace& w) {
  const int words = stream_words(count);
  const Region& box = kept.box;
  for (int i = 0; i < words; ++i) w.stream[i] = 0;
  pack_rows<Words>(w.rows + box.top * Words, box.top, box.bottom - box.top, grid_w, w.stream);
  for (int i = 0; i < words; ++i) {
    w.stream[i] &= w.valid[i];
    w.outside[i] = w.stream[i] ^ w.valid[i];
  }
  const int inside = count_bits(w.stream, words);
  const int outside = num_valid - inside;
  pick(w.cells, w.stream, count, w.inside);
  pick(w.cells, w.outside, count, w.cells);
  const double inside_sum = sum_of(w.inside, count);
  const double outside_sum = sum_of(w.cells, count);
  const double score = outside == 0 ? std::numeric_limits<double>::infinity()
                                    : (inside_sum / inside) / (outside_sum / outside);
  return {inside_sum / sum, score};
}

template <int Words>
std::int64_t boxes_by(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                      Keep keep, BoxesWorkspace& w, Box* out) {
  const int grid_h = maps.grid_h;
  const int grid_w = maps.grid_w;
  const int count = grid_h * grid_w;
  std::int64_t not_finite = 0;
  int num_valid = 0;
  for (std::int64_t index = 0; index < maps.count / heads; ++index) {
    Box& box = out[index] = {};
    if (index == 0 || valid.stride_map != 0) num_valid = read_valid(valid, index, w);
    const double all = combine_one(maps, index * heads, heads, taps, w.smoother, w.cells);
    if (!std::isfinite(all)) {
      box.mass = box.score = static_cast<float>(not_a_number);
      not_finite += 1;
      continue;
    }
    const double sum = sum_valid(all, num_valid, count, w);
    if (num_valid == 0 || !cut_valid(sum, num_valid, count, w)) continue;
    const Kept kept = keep == Keep::all ? keep_all<Words>(grid_h, grid_w, w)
                                        : keep_largest<Words>(keep, grid_w, w);
    const Support support = support_of<Words>(kept, sum, num_valid, count, grid_w, w);
    box = {static_cast<float>(kept.box.left),  static_cast<float>(kept.box.top),
           static_cast<float>(kept.box.right), static_cast<float>(kept.box.bottom),
           static_cast<float>(kept.area),      static_cast<float>(support.mass),
           static_cast<float>(support.score)};
  }
  return not_finite;
}

std::int64_t boxes(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                   Keep keep, void* memory, Box* out) {
  Scratch scratch(memory);
  BoxesWorkspace w(scratch, maps.grid_h, maps.grid_w, taps.count);
  return maps.grid_w <= 64 ? boxes_by<1>(maps, heads, taps, valid, keep, w, out)
                           : boxes_by<4>(maps, heads, taps, valid, keep, w, out);
}

}  // namespace
}  // namespace fastground
