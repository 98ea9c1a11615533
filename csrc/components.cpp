#include "components.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace fastground {
namespace {

// A row of 64 * Words columns, the first in the lowest bit.
template <int Words>
struct Bits {
  std::array<std::uint64_t, Words> word{};

  static Bits read(const std::uint64_t* from) {
    Bits bits;
    for (int w = 0; w < Words; ++w) bits.word[w] = from[w];
    return bits;
  }
  void write(std::uint64_t* to) const {
    for (int w = 0; w < Words; ++w) to[w] = word[w];
  }
  friend Bits operator&(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] &= b.word[w];
    return a;
  }
  friend Bits operator|(Bits a, const Bits& b) {
    for (int w = 0; w < Words; ++w) a.word[w] |= b.word[w];
    return a;
  }
  // This without what `b` holds.
  Bits without(const Bits& b) const {
    Bits result;
    for (int w = 0; w < Words; ++w) result.word[w] = word[w] & ~b.word[w];
    return result;
  }
  bool any() const {
    std::uint64_t all = 0;
    for (const std::uint64_t w : word) all |= w;
    return all != 0;
  }
  int count() const {
    int total = 0;
    for (const std::uint64_t w : word) total += std::popcount(w);
    return total;
  }
  int first() const {
    int w = 0;
    while (word[w] == 0) ++w;
    return 64 * w + std::countr_zero(word[w]);
  }
  // Each bit and its neighbours left and right.
  Bits widened() const {
    Bits result;
    for (int w = 0; w < Words; ++w) {
      std::uint64_t wide = word[w] | word[w] << 1 | word[w] >> 1;
      if (w > 0) wide |= word[w - 1] >> 63;
      if (w + 1 < Words) wide |= word[w + 1] << 63;
      result.word[w] = wide;
    }
    return result;
  }
  // The lowest run of set bits: adding its lowest bit ripples a carry through the run and out.
  Bits lowest_run() const {
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
};

// Bit j is set where cells[j] > level; at most 64 cells.
std::uint64_t cells_above(const double* cells, int count, double level) {
  std::uint64_t bits = 0;
  int j = 0;
#ifdef __SSE2__
  const __m128d levels = _mm_set1_pd(level);
  for (; j + 2 <= count; j += 2) {
    const __m128d above = _mm_cmpgt_pd(_mm_loadu_pd(cells + j), levels);
    bits |= static_cast<std::uint64_t>(_mm_movemask_pd(above)) << j;
  }
#endif
  for (; j < count; ++j) bits |= std::uint64_t{cells[j] > level} << j;
  return bits;
}

}  // namespace

double mean_of(const double* cells, int count, double sum) {
  const double mean = sum / count;
  for (int i = 0; i < count; ++i) {
    if (cells[i] <= mean) return mean;  // soon, but in a constant map whose sum was rounded
  }
  return *std::min_element(cells, cells + count);
}

double level_of(Cut cut, double mean) {
  constexpr double eps = 1e-3;
  switch (cut) {
    case Cut::mean:
      return mean;
    case Cut::mean_eps:
      return mean + eps;
    case Cut::two_mean_eps:
      return 2 * mean + eps;
  }
  return mean;
}

Components::Components(int grid_h, int grid_w)
    : grid_h_(grid_h), grid_w_(grid_w), words_(grid_w <= 64 ? 1 : 4) {
  const int strips = (grid_h + 1) / 2;
  const int most_runs = strips * ((grid_w + 1) / 2);
  rows_.resize(static_cast<std::size_t>(2 * strips * words_));
  masks_.resize(static_cast<std::size_t>(most_runs * words_));
  runs_.resize(static_cast<std::size_t>(most_runs));
  areas_.reserve(static_cast<std::size_t>(most_runs));
  numbers_.reserve(static_cast<std::size_t>(most_runs));
}

int Components::find(const double* cells, double level, const double* valid) {
  for (int i = 0; i < grid_h_; ++i) {
    const double* row = cells + i * grid_w_;
    for (int w = 0; w < words_; ++w) {
      const int begin = std::min(64 * w, grid_w_);
      const int end = std::min(64 * w + 64, grid_w_);
      std::uint64_t bits = cells_above(row + begin, end - begin, level);
      if (valid != nullptr) {
        for (int j = begin; j < end; ++j) {
          if (valid[i * grid_w_ + j] == 0) bits &= ~(std::uint64_t{1} << (j - begin));
        }
      }
      rows_[i * words_ + w] = bits;
    }
  }
  if (words_ == 1) {
    connect<1>();
  } else {
    connect<4>();
  }
  return static_cast<int>(areas_.size());
}

template <int Words>
void Components::connect() {
  using Row = Bits<Words>;
  areas_.clear();
  int count = 0;
  int above = 0;  // the runs of the strip above are [above, here)
  for (int strip = 0; 2 * strip < grid_h_; ++strip) {
    const int here = count;
    const Row upper = Row::read(&rows_[2 * strip * Words]);
    const Row lower = Row::read(&rows_[(2 * strip + 1) * Words]);
    const Row contact = strip == 0 ? Row{} : Row::read(&rows_[(2 * strip - 1) * Words]);
    int candidate = above;
    for (Row rest = upper | lower; rest.any();) {
      const Row mask = rest.lowest_run();
      const int start = mask.first();
      const int end = start + mask.count();
      const int index = count++;
      rest = rest.without(mask);
      runs_[index] = {strip, start, end, index, 0};
      mask.write(&masks_[index * Words]);
      while (candidate < here && runs_[candidate].end < start) ++candidate;
      for (int other = candidate; other < here && runs_[other].start <= end; ++other) {
        const Row touching = (contact & Row::read(&masks_[other * Words])).widened();
        if ((touching & mask & upper).any()) unite(other, index);
      }
    }
    above = here;
  }
  num_runs_ = count;
  for (int index = 0; index < count; ++index) {
    Run& run = runs_[index];
    if (run.parent == index) {
      run.region = static_cast<int>(areas_.size());
      areas_.push_back(0);
    } else {
      run.region = runs_[run.parent].region;  // the parent comes earlier
    }
    const Row mask = Row::read(&masks_[index * Words]);
    const Row upper = Row::read(&rows_[2 * run.strip * Words]);
    const Row lower = Row::read(&rows_[(2 * run.strip + 1) * Words]);
    areas_[run.region] += (mask & upper).count() + (mask & lower).count();
  }
}

int Components::root(int run) {
  while (runs_[run].parent != run) {
    runs_[run].parent = runs_[runs_[run].parent].parent;
    run = runs_[run].parent;
  }
  return run;
}

void Components::unite(int a, int b) {
  a = root(a);
  b = root(b);
  runs_[std::max(a, b)].parent = std::min(a, b);
}

// Calls f(cell) for the cells of a run in one of its two rows, from left to right.
template <class F>
void Components::for_each_cell(const Run& run, int run_index, int row, F&& f) const {
  for (int w = run.start / 64; w <= (run.end - 1) / 64; ++w) {
    std::uint64_t bits = rows_[row * words_ + w] & masks_[run_index * words_ + w];
    for (; bits != 0; bits &= bits - 1) f(row * grid_w_ + 64 * w + std::countr_zero(bits));
  }
}

void Components::add_excess(const double* cells, double base, double* masses) const {
  for (int index = 0; index < num_runs_; ++index) {
    const Run& run = runs_[index];
    for (const int row : {2 * run.strip, 2 * run.strip + 1}) {
      for_each_cell(run, index, row,
                    [&](int cell) { masses[run.region] += std::max(cells[cell] - base, 0.0); });
    }
  }
}

void Components::write_labels(std::int32_t* labels) {
  std::fill(labels, labels + grid_h_ * grid_w_, 0);
  numbers_.assign(areas_.size(), 0);
  int last = 0;
  for (int begin = 0, end = 0; begin < num_runs_; begin = end) {
    const int strip = runs_[begin].strip;
    while (end < num_runs_ && runs_[end].strip == strip) ++end;
    for (const int row : {2 * strip, 2 * strip + 1}) {
      for (int index = begin; index < end; ++index) {
        int& number = numbers_[runs_[index].region];
        for_each_cell(runs_[index], index, row, [&](int cell) {
          if (number == 0) number = ++last;
          labels[cell] = number;
        });
      }
    }
  }
}

}  // namespace fastground
