// Runs the kernels of a name over drawn maps, or attention over drawn vectors, and writes all
// results to standard output, so that what two processors or compilers write can be compared:
// .ci/aarch64.
//     native_driver NAME maps | attention
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../csrc/kernels.hpp"

namespace {

using namespace fastground;

struct Random {
  std::uint64_t state;

  std::uint64_t bits() {  // xorshift64*, Vigna 2014
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717u;
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  int below(int n) { return static_cast<int>(bits() % static_cast<unsigned>(n)); }
};

// A number as this dtype: doubles and floats rounded, the halves cut off (both have few bits).
void put(std::byte* to, Dtype dtype, double value) {
  const auto single = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &single, 4);
  std::uint16_t half = static_cast<std::uint16_t>(bits >> 16);  // bfloat16
  switch (dtype) {
    case Dtype::float64:
      std::memcpy(to, &value, 8);
      return;
    case Dtype::float32:
      std::memcpy(to, &single, 4);
      return;
    case Dtype::float16: {
      const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
      const std::uint32_t fraction = (bits & 0x7fffff) | 0x800000;
      half = static_cast<std::uint16_t>(exponent <= -11  ? 0
                                        : exponent <= 0  ? fraction >> (14 - exponent)
                                        : exponent >= 31 ? 0x7c00
                                                         : exponent << 10 | (bits >> 13 & 0x3ff));
      half |= static_cast<std::uint16_t>(bits >> 16 & 0x8000);
      break;
    }
    case Dtype::boolean:
      *to = std::byte{value > 0.4};
      return;
    case Dtype::bfloat16:
      break;
  }
  std::memcpy(to, &half, 2);
}

int bytes_of(Dtype dtype) {
  return dtype == Dtype::boolean   ? 1
         : dtype == Dtype::float64 ? 8
         : dtype == Dtype::float32 ? 4
                                   : 2;
}

std::vector<std::byte> draw(Random& random, Dtype dtype, int count, int cells) {
  std::vector<std::byte> maps(static_cast<std::size_t>(count) * cells * bytes_of(dtype));
  std::byte* to = maps.data();
  for (int m = 0; m < count; ++m) {
    const int family = random.below(5);
    const int spoilt = random.below(12) == 0 ? random.below(cells) : -1;
    for (int i = 0; i < cells; ++i, to += bytes_of(dtype)) {
      const double u = random.uniform();
      double value = u;
      if (family == 1) value = u * u * u * u * u * u;
      if (family == 2) value = static_cast<int>(u * 4) * 0.25;
      if (family == 3) value = u - 0.5;
      if (family == 4) value = u * 0x1p-24;
      put(to, dtype, i == spoilt && dtype != Dtype::boolean ? INFINITY : value);
    }
  }
  return maps;
}

template <class T>
void write(std::vector<T> results) {
  if constexpr (sizeof(T) == 4 && T(0.5) != T(0)) {
    for (T& result : results) {
      if (result != result) result = NAN;  // one NaN for all
    }
  }
  std::fwrite(results.data(), sizeof(T), results.size(), stdout);
}

void run(const char* name, Random& random, Dtype dtype, int h, int w, int count) {
  const Kernels& kernels = *kernels_named(name);
  const int cells = h * w;
  const std::vector<std::byte> memory = draw(random, dtype, count, cells);
  const MapView maps{memory.data(), dtype, count, h, w, cells, w, 1};
  const std::vector<double> weights = {0.0625, 0.25, 0.375, 0.25, 0.0625};
  const Taps taps{weights.data(), 5, random.below(2) ? Border::reflect : Border::reflect101};
  std::vector<std::byte> work(kernels.scratch_bytes(h, w, taps.count) + 64);
  void* scratch = work.data() + (64 - reinterpret_cast<std::uintptr_t>(work.data()) % 64) % 64;
  const auto cut = static_cast<Cut>(random.below(3));

  std::vector<std::int32_t> labels(static_cast<std::size_t>(count) * cells);
  kernels.label(maps, cut, scratch, labels.data());
  write(labels);
  if (dtype == Dtype::boolean) return;

  for (const Weight weight : {Weight::area, Weight::mass}) {
    std::vector<float> sums(count), entropies(count);
    kernels.head_stats(maps, weight, cut, Empty::inf, scratch, sums.data(), entropies.data());
    write(sums);
    write(entropies);
  }
  std::vector<char> mask(static_cast<std::size_t>(count) * cells);
  kernels.binarize(maps, cut, scratch, reinterpret_cast<bool*>(mask.data()));
  write(mask);

  const int heads = count % 3 == 0 ? 3 : 1;
  const int combined = count / heads;
  std::vector<float> sums(static_cast<std::size_t>(combined) * cells);
  kernels.combine(maps, heads, taps, scratch, sums.data());
  write(sums);

  const std::vector<std::byte> usable = draw(random, Dtype::boolean, combined, cells);
  const MapView valid{usable.data(), Dtype::boolean, combined, h, w, cells, w, 1};
  for (const Keep keep : {Keep::hull, Keep::component, Keep::mass, Keep::all}) {
    std::vector<float> rows(7 * combined);
    kernels.boxes(maps, heads, taps, valid, keep, scratch, reinterpret_cast<Box*>(rows.data()));
    write(rows);
  }
}

// Every query sees itself and some of the keys before it.
void attend(const char* name, Random& random, int head_dim, int tokens) {
  const Kernels& kernels = *kernels_named(name);
  constexpr int batch = 2, heads = 4, key_heads = 2;
  const auto drawn = [&](int count) {
    std::vector<float> numbers(static_cast<std::size_t>(batch) * count * tokens * head_dim);
    for (float& number : numbers) number = static_cast<float>(4 * random.uniform() - 2);
    return numbers;
  };
  const std::vector<float> query = drawn(heads), key = drawn(key_heads), value = drawn(key_heads);
  const std::int64_t head = std::int64_t{tokens} * head_dim;
  const Vectors queries{query.data(), heads * head, head, head_dim};
  const Vectors keys{key.data(), key_heads * head, head, head_dim};
  const Vectors values{value.data(), key_heads * head, head, head_dim};
  Attention all{batch,   heads, key_heads, tokens,  tokens, head_dim, head_dim,
                queries, keys,  values,    nullptr, 0.25f,  nullptr};
  std::vector<std::uint32_t> seen(static_cast<std::size_t>(batch) * all.blocks() * tokens);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const int at = static_cast<int>(i % tokens);
    const int first = static_cast<int>(i / tokens % all.blocks()) * Attention::block;
    for (int lane = 0; lane < Attention::block && first + lane < tokens; ++lane) {
      const bool sees = at == first + lane || (at < first + lane && random.below(3) > 0);
      seen[i] |= std::uint32_t{sees} << lane;
    }
  }
  std::vector<float> out(query.size());
  std::vector<std::byte> work(kernels.attention_bytes(head_dim, head_dim) + 64);
  void* scratch = work.data() + (64 - reinterpret_cast<std::uintptr_t>(work.data()) % 64) % 64;
  all.seen = seen.data(), all.out = out.data();
  kernels.attention(all, 0, std::int64_t{batch} * heads * all.blocks(), scratch);
  write(out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || kernels_named(argv[1]) == nullptr) return 2;
  const char* const name = argv[1];
  Random random{88172645463325252u};
  if (std::strcmp(argv[2], "attention") == 0) {
    for (const int head_dim : {1, 16, 64, 80, 128}) {
      for (const int tokens : {1, 7, 33, 200}) attend(name, random, head_dim, tokens);
    }
    return 0;
  }
  const int grids[][2] = {{1, 1},   {1, 24},  {24, 1},  {7, 5},   {14, 14}, {16, 16},
                          {24, 24}, {27, 27}, {28, 36}, {31, 32}, {32, 31}, {33, 33},
                          {64, 64}, {65, 65}, {3, 130}, {128, 90}};
  for (const Dtype dtype :
       {Dtype::boolean, Dtype::float16, Dtype::bfloat16, Dtype::float32, Dtype::float64}) {
    for (const auto& [h, w] : grids) {
      for (const int count : {1, 3, 17, 300}) {
        if (h * w * count <= 300 * 1300) run(name, random, dtype, h, w, count);
      }
    }
  }
}
