// How the work is cut. What a call costs is guessed from its cells: up to a millisecond the calling
// thread does it in one go, and only then others are woken, each slice being a quarter of one.
#include "slices.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "threads.hpp"

namespace fastground {
namespace {

// Working memory of this thread: 16 MiB at most stay for the next slice; more is only needed by
// filters of very many taps.
class Memory {
 public:
  explicit Memory(std::size_t bytes) {
    if (kept().size() < bytes + 64) kept() = std::vector<std::byte>(bytes + 64);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (kept().size() > most_kept) kept() = std::vector<std::byte>();
  }

  void* aligned() const {
    const auto address = reinterpret_cast<std::uintptr_t>(kept().data());
    return reinterpret_cast<void*>((address + 63) / 64 * 64);
  }

 private:
  static constexpr std::size_t most_kept = 16 << 20;

  static std::vector<std::byte>& kept() {
    thread_local std::vector<std::byte> memory;
    return memory;
  }
};

std::int64_t bytes_of(Dtype dtype) {
  if (dtype == Dtype::boolean) return 1;
  if (dtype == Dtype::float16 || dtype == Dtype::bfloat16) return 2;
  return dtype == Dtype::float32 ? 4 : 8;
}

// The maps [begin, end).
MapView part(const MapView& maps, std::int64_t begin, std::int64_t end) {
  MapView some = maps;
  some.data =
      static_cast<const std::byte*>(maps.data) + begin * maps.stride_map * bytes_of(maps.dtype);
  some.count = end - begin;
  return some;
}

// Where a result goes on, if it is wanted.
template <class T>
T* at(T* result, std::int64_t element) {
  return result == nullptr ? nullptr : result + element;
}

// Groups that a thread takes at once: in the blocks of 256 that the kernels like.
std::int64_t grain(std::int64_t groups, double ns_a_group) {
  if (static_cast<double>(groups) * ns_a_group < 1e6) return groups;
  const auto some = static_cast<std::int64_t>(0.25e6 / ns_a_group);
  return some < 1 ? 1 : some < 256 ? some : some / 256 * 256;
}

// Calls f(begin, end, memory) for all groups of `heads` maps, `taps` being those of its filter and
// ns_a_cell about what it costs.
template <class F>
void for_groups(const Kernels& kernels, const MapView& maps, int heads, int taps, double ns_a_cell,
                F&& f) {
  const std::int64_t groups = groups_of(maps, heads);
  const double ns_a_group = ns_a_cell * heads * maps.grid_h * maps.grid_w;
  const std::size_t bytes = kernels.scratch_bytes(maps.grid_h, maps.grid_w, taps);
  parallel_for(groups, grain(groups, ns_a_group), [&](std::int64_t begin, std::int64_t end) {
    const Memory memory(bytes);
    f(begin, end, memory.aligned());
  });
}

// And adds what f returns.
template <class F>
std::int64_t sum_over_groups(const Kernels& kernels, const MapView& maps, int heads, int taps,
                             double ns_a_cell, F&& f) {
  std::atomic<std::int64_t> sum = 0;
  for_groups(
      kernels, maps, heads, taps, ns_a_cell,
      [&](std::int64_t begin, std::int64_t end, void* memory) { sum += f(begin, end, memory); });
  return sum;
}

std::int64_t cells_of(const MapView& maps) { return std::int64_t{maps.grid_h} * maps.grid_w; }

std::atomic<const Kernels*> in_use = &best_kernels();

}  // namespace

const Kernels& kernels_in_use() { return *in_use; }
void use_kernels(const Kernels& kernels) { in_use = &kernels; }

std::int64_t groups_of(const MapView& maps, int heads) {
  if (heads < 1 || maps.count % heads != 0) {
    throw std::invalid_argument("count must be a multiple of heads");
  }
  return maps.count / heads;
}

std::int64_t head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty, float* sums,
                        float* entropies) {
  const Kernels& kernels = kernels_in_use();
  return sum_over_groups(kernels, maps, 1, 1, 0.25,
                         [&](std::int64_t begin, std::int64_t end, void* memory) {
                           return kernels.head_stats(part(maps, begin, end), weight, cut, empty,
                                                     memory, at(sums, begin), at(entropies, begin));
                         });
}

std::int64_t binarize(const MapView& maps, Cut cut, bool* mask) {
  const Kernels& kernels = kernels_in_use();
  return sum_over_groups(
      kernels, maps, 1, 1, 0.25, [&](std::int64_t begin, std::int64_t end, void* memory) {
        return kernels.binarize(part(maps, begin, end), cut, memory, mask + begin * cells_of(maps));
      });
}

std::int64_t label(const MapView& maps, Cut cut, std::int32_t* labels) {
  const Kernels& kernels = kernels_in_use();
  return sum_over_groups(
      kernels, maps, 1, 1, 1.0, [&](std::int64_t begin, std::int64_t end, void* memory) {
        return kernels.label(part(maps, begin, end), cut, memory, labels + begin * cells_of(maps));
      });
}

std::int64_t combine(const MapView& maps, int heads, const Taps& taps, float* combined) {
  const Kernels& kernels = kernels_in_use();
  return sum_over_groups(kernels, maps, heads, taps.count, 0.3 + 0.1 * taps.count,
                         [&](std::int64_t begin, std::int64_t end, void* memory) {
                           return kernels.combine(part(maps, begin * heads, end * heads), heads,
                                                  taps, memory, combined + begin * cells_of(maps));
                         });
}

std::int64_t boxes(const MapView& maps, int heads, const Taps& taps, const MapView& valid,
                   Keep keep, Box* out) {
  const Kernels& kernels = kernels_in_use();
  return sum_over_groups(kernels, maps, heads, taps.count, 2.0 + 0.1 * taps.count,
                         [&](std::int64_t begin, std::int64_t end, void* memory) {
                           return kernels.boxes(part(maps, begin * heads, end * heads), heads, taps,
                                                part(valid, begin, end), keep, memory, out + begin);
                         });
}

double largest(const MapView& maps) {
  const Kernels& kernels = kernels_in_use();
  std::atomic<double> most = 0;
  for_groups(kernels, maps, 1, 1, 0.1, [&](std::int64_t begin, std::int64_t end, void* memory) {
    const double found = kernels.largest(part(maps, begin, end), memory);
    double before = most;
    while (before < found && !most.compare_exchange_weak(before, found)) continue;
  });
  return most;
}

void attention(const Attention& all, int threads) {
  const Kernels& kernels = kernels_in_use();
  const std::int64_t blocks = std::int64_t{all.batch} * all.heads * all.blocks();
  const double ns_a_block = 0.02 * Attention::block * all.keys * (all.head_dim + all.value_dim + 8);
  const std::size_t bytes = kernels.attention_bytes(all.head_dim, all.value_dim);
  parallel_for(
      blocks, threads > 1 ? grain(blocks, ns_a_block) : blocks,
      [&](std::int64_t begin, std::int64_t end) {
        const Memory memory(bytes);
        kernels.attention(all, begin, end, memory.aligned());
      },
      threads);
}

void mask_words(const Mask& mask, std::uint32_t* words) {
  for (int batch = 0; batch < mask.batch; ++batch) {
    for (int query = 0; query < mask.queries; ++query) {
      const std::uint8_t* const row =
          mask.data + batch * mask.stride_batch + query * mask.stride_query;
      const int bit = query % Attention::block;
      if (bit == 0) {
        if (query > 0) words += mask.keys;
        std::fill_n(words, mask.keys, 0);
      }
      for (int key = 0; key < mask.keys; ++key) {
        words[key] |= std::uint32_t{row[key * mask.stride_key] != 0} << bit;
      }
    }
    words += mask.keys;
  }
}

}  // namespace fastground
