// Attention under a mask: softmax(scale * Q K^T) V, without the keys that none of a tile's queries
// sees.
//
//            a tile's queries, one a lane
//     key 0    s s s s s s s s
//     key 1    s s s s s s s s
//     key 2    . s s s s s s s
//     key 3    . . s s s s s s
//     key 9    . . . . . . . .    seen by none: left out
//
// Scores, their maxima and sums and the output all lie with their queries in lanes, so that softmax
// asks no neighbour, and both products are one loop: numbers of K or of V, broadcast, times
// registers of Q or of the weights. K and V are read where they lie.
//
// Keys are taken some at a time. What was summed before is scaled down whenever a larger score
// comes (Milakov and Gimelshein, arXiv 1805.02867). Exponentials are powers of two, log2(e) being
// multiplied into the queries. A query that sees nothing has the output 0.
#pragma once

#include <cfloat>

#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace fastground {
namespace {

constexpr int keys_at_once = 64;
constexpr int rows_at_once = register_bytes == 64 ? 8 : 4;  // times two registers: sums in flight

// Working memory; a tile has two registers of queries at most.
struct AttentionRoom {
  AttentionRoom(Scratch& scratch, int head_dim, int value_dim)
      : query(scratch.take<float>(head_dim * 2 * lanes<float>)),
        weights(scratch.take<float>(keys_at_once * 2 * lanes<float>)),
        output(scratch.take<float>(value_dim * 2 * lanes<float>)) {}

  float* query;    // [head_dim][lane]
  float* weights;  // [key][lane], at first scores
  float* output;   // [value_dim][lane], not yet divided by the sum of weights
};

// to[row] = to[row] * shrink + the sum of left[row * row_step + k * step] * right[k] over k, or
// that sum alone without shrink. Compiled by itself, the sums stay in registers.
template <int Rows, int Wide>
[[gnu::noinline]] void add_products(const float* left, std::int64_t row_step, std::int64_t step,
                                    int count, const float* right, const Vec<float>* shrink,
                                    float* to) {
  Vec<float> sums[Rows][Wide];
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
    for (int w = 0; w < Wide; ++w) {
      const float* const before = to + (row * Wide + w) * lanes<float>;
      sums[row][w] = shrink == nullptr ? Vec<float>{} : load(before) * shrink[w];
    }
  }
  for (int k = 0; k < count; ++k, left += step, right += Wide * lanes<float>) {
    Vec<float> factor[Wide];
#pragma GCC unroll 2
    for (int w = 0; w < Wide; ++w) factor[w] = load(right + w * lanes<float>);
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const Vec<float> number = broadcast(left[row * row_step]);
#pragma GCC unroll 2
      for (int w = 0; w < Wide; ++w) sums[row][w] = fused(number, factor[w], sums[row][w]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 2
    for (int w = 0; w < Wide; ++w) store(to + (row * Wide + w) * lanes<float>, sums[row][w]);
  }
}

// Calls f<Rows>(first) for `count` rows, as many at a time as there are registers for.
template <int Rows = rows_at_once, class F>
inline void for_rows(int count, F&& f, int first = 0) {
  for (; first + Rows <= count; first += Rows) f.template operator()<Rows>(first);
  if constexpr (Rows > 1) for_rows<Rows / 2>(count, f, first);
}

// Scores of `count` keys to weights, 2^(score - most); `most` becomes the largest score up to here,
// and what was summed before is to be scaled by `shrink`. From bit `shift` on seen[key] says which
// lanes see the key, the weight being 0 elsewhere; without seen all do.
template <int Wide>
void weigh(float* weights, int count, const std::uint32_t* seen, int shift, Vec<float>* most,
           Vec<float>* total, Vec<float>* shrink) {
  constexpr int width = Wide * lanes<float>;
  for (int w = 0; w < Wide; ++w, weights += lanes<float>, shift += lanes<float>) {
    const auto visible = [&](int i) { return lanes_of<std::int32_t>(seen[i] >> shift); };
    const Vec<float> before = most[w];
    Vec<float> largest = before, sum{};
    for (int i = 0; i < count; ++i) {
      Vec<float> score = load(weights + i * width);
      if (seen != nullptr) {
        score = where(visible(i), score, broadcast(-FLT_MAX));
        store(weights + i * width, score);
      }
      largest = larger(score, largest);
    }
    for (int i = 0; i < count; ++i) {
      Vec<float> weight = power_of_two(load(weights + i * width) - largest);
      if (seen != nullptr) weight = where(visible(i), weight, Vec<float>{});
      store(weights + i * width, weight);
      sum += weight;
    }
    most[w] = largest;
    shrink[w] = power_of_two(before - largest);
    total[w] = total[w] * shrink[w] + sum;
  }
}

// The output of Wide registers of queries or fewer, from `first` on, whose bits in seen[key] begin
// at `shift`.
template <int Wide>
void attend(const Attention& a, const AttentionRoom& room, int batch, int head, int first,
            const std::uint32_t* seen, int shift) {
  constexpr int width = Wide * lanes<float>;
  const int queries = a.queries - first < width ? a.queries - first : width;
  const auto mine = static_cast<std::uint32_t>(((std::uint64_t{1} << queries) - 1) << shift);
  const int key_head = head / (a.heads / a.key_heads);
  const float* const query = a.query.at(batch, head) + first * a.query.stride_token;
  const float* const keys = a.key.at(batch, key_head);
  const float* const values = a.value.at(batch, key_head);
  const float factor = a.scale * 1.4426950408889634f;
  for (int i = 0; i < a.head_dim * width; ++i) room.query[i] = 0;
  for (int i = 0; i < a.value_dim * width; ++i) room.output[i] = 0;
  for (int lane = 0; lane < queries; ++lane) {
    const float* const from = query + lane * a.query.stride_token;
    for (int d = 0; d < a.head_dim; ++d) room.query[d * width + lane] = from[d] * factor;
  }

  Vec<float> most[Wide], total[Wide];
  for (int w = 0; w < Wide; ++w) most[w] = broadcast(-FLT_MAX), total[w] = broadcast(0.0f);
  for (int key = 0; key < a.keys;) {
    std::uint32_t all = mine;
    int count = 0;
    for (; count < keys_at_once && key + count < a.keys; ++count) {
      const std::uint32_t some = seen[key + count] & mine;
      if (some == 0) break;
      all &= some;
    }
    if (count == 0) {
      ++key;
      continue;
    }
    for_rows(count, [&]<int Rows>(int i) {
      const float* const from = keys + (key + i) * a.key.stride_token;
      add_products<Rows, Wide>(from, a.key.stride_token, 1, a.head_dim, room.query, nullptr,
                               room.weights + i * width);
    });

    Vec<float> shrink[Wide];
    weigh<Wide>(room.weights, count, all == mine ? nullptr : seen + key, shift, most, total,
                shrink);

    for_rows(a.value_dim, [&]<int Rows>(int d) {
      const float* const from = values + key * a.value.stride_token + d;
      add_products<Rows, Wide>(from, 1, a.value.stride_token, count, room.weights, shrink,
                               room.output + d * width);
    });
    key += count;
  }

  float* const out =
      a.out + ((std::int64_t{batch} * a.queries + first) * a.heads + head) * a.value_dim;
  for (int lane = 0; lane < queries; ++lane) {
    const float sum = total[lane / lanes<float>][lane % lanes<float>];
    const float part = sum == 0 ? 0 : 1 / sum;
    for (int d = 0; d < a.value_dim; ++d) {
      out[std::int64_t{lane} * a.heads * a.value_dim + d] = room.output[d * width + lane] * part;
    }
  }
}

void attention(const Attention& a, std::int64_t begin, std::int64_t end, void* memory) {
  Scratch scratch(memory);
  const AttentionRoom room(scratch, a.head_dim, a.value_dim);
  const int blocks = a.blocks();
  for (std::int64_t index = begin; index < end; ++index) {
    const int block = static_cast<int>(index % blocks);
    const int head = static_cast<int>(index / blocks % a.heads);
    const int batch = static_cast<int>(index / blocks / a.heads);
    const std::uint32_t* const seen = a.seen + (std::int64_t{batch} * blocks + block) * a.keys;
    for (int shift = 0; shift < Attention::block; shift += 2 * lanes<float>) {
      const int first = block * Attention::block + shift;
      if (first + lanes<float> < a.queries) {
        attend<2>(a, room, batch, head, first, seen, shift);
      } else if (first < a.queries) {
        attend<1>(a, room, batch, head, first, seen, shift);
      }
    }
  }
}

std::size_t attention_bytes(int head_dim, int value_dim) {
  Scratch scratch(nullptr);
  AttentionRoom(scratch, head_dim, value_dim);
  return scratch.used();
}

}  // namespace
}  // namespace fastground
