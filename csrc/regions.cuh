// The 8-connected regions of one binary grid of any size, by a warp.
//
// As in components.hpp, rows are taken in pairs, strips, and a run of their OR is one piece. A lane
// has a strip (or several): it finds the runs, and unites those that touch a run of the strip above
// in a forest, which takes atomic steps because several lanes do so at once.
//
//     place of a run   strip * most_runs + first column / 2       no two runs have the same,
//                                                                 and later runs have a larger one
//
// The root of a region is its first run, whatever the order in which lanes come: nothing depends on
// it. Two waits for all lanes separate what is written from what is read.
#pragma once

#include "bits.hpp"
#include "warp.cuh"

namespace fastground {
namespace {

template <int Words>
class Regions {
 public:
  using Row = Bits<Words>;

  FASTGROUND_ANYWHERE Regions(Arena& arena, int grid_h, int grid_w)
      : grid_h(grid_h),
        grid_w(grid_w),
        strips((grid_h + 1) / 2),
        most_runs((grid_w + 1) / 2),
        rows(arena.take<std::uint64_t>(2 * strips * Words)),
        roots(arena.take<int>(places())),
        parents_(arena.take<int>(places())) {}

  // How many places of runs there are.
  FASTGROUND_ANYWHERE int places() const { return strips * most_runs; }

  __device__ Row row(int i) const { return Row::read(&rows[i * Words]); }

  // Finds the regions of a bit stream: roots[place] is then the place of the region's first run,
  // and none (-1) where no run begins.
  __device__ void find(const std::uint64_t* stream) {
    for (int i = this_lane(); i < 2 * strips; i += warp_size) {
      (i < grid_h ? row_of<Words>(stream, i, grid_w) : Row{}).write(&rows[i * Words]);
    }
    for (int i = this_lane(); i < places(); i += warp_size) {
      parents_[i] = i;
      roots[i] = -1;
    }
    __syncwarp();
    each_run([&](int strip, int place, const Row& run) {
      if (strip > 0) unite_above(strip, place, run);
    });
    __syncwarp();
    each_run([&](int, int place, const Row&) { roots[place] = root(place); });
    __syncwarp();  // spare
  }

  // Calls f(strip, place, run) for each run of this lane's strips.
  template <class F>
  __device__ void each_run(F&& f) const {
    for (int strip = this_lane(); strip < strips; strip += warp_size) {
      for (Row rest = both(strip); rest.any();) {
        const Row run = rest.lowest_run();
        rest = rest.without(run);
        f(strip, place_of(strip, run), run);
      }
    }
  }

  // Calls f(strip, place, run) in all lanes together for the runs of all strips, in order.
  template <class F>
  __device__ void each_run_in_turn(F&& f) const {
    for (int strip = 0; strip < strips; ++strip) {
      for (Row rest = both(strip); rest.any();) {
        const Row run = rest.lowest_run();
        rest = rest.without(run);
        f(strip, place_of(strip, run), run);
      }
    }
  }

  // The place of the run that holds a cell which is set.
  __device__ int place_at(int i, int column) const {
    const Row all = both(i / 2);
    return place_of_column(i / 2, all.without(all.right()), column);
  }

  // The first cell of a run in raster order.
  __device__ int first_cell(int strip, const Row& run) const {
    const Row upper = run & row(2 * strip);
    if (upper.any()) return 2 * strip * grid_w + upper.first();
    return (2 * strip + 1) * grid_w + run.first();
  }

  __device__ int cells_of(int strip, const Row& run) const {
    return (run & row(2 * strip)).count() + (run & row(2 * strip + 1)).count();
  }

  // Calls f(cell) for the cells of a run in raster order.
  template <class F>
  __device__ void each_cell(int strip, const Row& run, F&& f) const {
    for (int i = 2 * strip; i < 2 * strip + 2; ++i) {
      const Row cells = run & row(i);
      for (int w = 0; w < Words; ++w) {
        for (std::uint64_t bits = cells.word[w]; bits != 0; bits &= bits - 1) {
          f(i * grid_w + 64 * w + lowest_bit(bits));
        }
      }
    }
  }

  int grid_h, grid_w;
  int strips;
  int most_runs;
  std::uint64_t* rows;  // an even number of them
  int* roots;           // of each place

 private:
  __device__ Row both(int strip) const { return row(2 * strip) | row(2 * strip + 1); }

  __device__ int place_of(int strip, const Row& run) const {
    return strip * most_runs + run.first() / 2;
  }

  // Of the last run of a strip that begins at or before a column.
  __device__ int place_of_column(int strip, const Row& starts, int column) const {
    return strip * most_runs + (starts & Row::span(0, column + 1)).last() / 2;
  }

  // Unites a run with all that it touches in the strip above.
  __device__ void unite_above(int strip, int place, const Row& run) {
    const Row above = both(strip - 1);
    const Row starts = above.without(above.right());
    Row touching = (row(2 * strip) & run).widened() & row(2 * strip - 1);
    while (touching.any()) {
      const int column = touching.first();
      unite(place_of_column(strip - 1, starts, column), place);
      // On to the next run: from this column on the run is the lowest one of what is left of it.
      const Row later = above.without(Row::span(0, column + 1)) | Row::span(column, column + 1);
      touching = touching.without(later.lowest_run());
    }
  }

  // The parent, while other lanes may change it.
  __device__ int parent(int place) const { return atomicOr(&parents_[place], 0); }

  __device__ void unite(int a, int b) {
    while (true) {
      for (int up = parent(a); up != a; up = parent(a)) a = up;
      for (int up = parent(b); up != b; up = parent(b)) b = up;
      if (a == b) return;
      if (a > b) {
        const int later = a;
        a = b;
        b = later;
      }
      const int before = atomicMin(&parents_[b], a);
      if (before == b) return;
      b = before;  // another lane was first: what it found is to be united, too
    }
  }

  // Once nobody unites any more.
  __device__ int root(int place) const {
    while (parents_[place] != place) place = parents_[place];
    return place;
  }

  int* parents_;
};

}  // namespace
}  // namespace fastground
