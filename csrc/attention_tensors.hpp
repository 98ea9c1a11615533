// Tensors as attention reads them, checked: four axes on the CPU, none of them empty.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

#include "exchange.hpp"
#include "kernels.hpp"

namespace fastground {

template <class T>
struct FourAxes {
  FourAxes(const dlpack::Tensor& tensor, dlpack::DataType wanted) {
    if (tensor.device.type != dlpack::cpu || tensor.ndim != 4 || !(tensor.dtype == wanted)) {
      throw std::invalid_argument(
          "attention must be on the CPU, float32 with a mask of bool, "
          "(batch, heads, tokens, head_dim)");
    }
    for (int i = 0; i < 4; ++i) {
      if (tensor.shape[i] < 1 || tensor.shape[i] > 1 << 24) {
        throw std::invalid_argument("attention must have 1 to 2^24 of everything");
      }
      size[i] = static_cast<int>(tensor.shape[i]);
      stride[i] = tensor.strides[i];
    }
    if (tensor.data == nullptr) throw std::invalid_argument("attention must hold data");
    data = reinterpret_cast<const T*>(static_cast<const char*>(tensor.data) + tensor.byte_offset);
  }

  Vectors vectors() const {
    if (stride[3] != 1 && size[3] != 1) {
      throw std::invalid_argument("the numbers of a token must lie together");
    }
    return {data, stride[0], stride[1], stride[2]};
  }

  const T* data;
  int size[4];
  std::int64_t stride[4];
};

// A product of sizes; tensors of stride 0 have more numbers than memory.
inline std::int64_t product(std::initializer_list<int> sizes) {
  std::int64_t all = 1;
  for (const int size : sizes) {
    if (__builtin_mul_overflow(all, size, &all)) {
      throw std::invalid_argument("attention must have fewer than 2^63 numbers");
    }
  }
  return all;
}

// How many words a mask has.
inline std::int64_t words_of(int batch, int queries, int keys) {
  return product({batch, (queries + Attention::block - 1) / Attention::block, keys});
}

// How many numbers the output has.
inline std::int64_t numbers_of(const Attention& a) {
  return product({a.batch, a.queries, a.heads, a.value_dim});
}

inline Mask mask_of(const dlpack::Tensor& tensor) {
  const FourAxes<std::uint8_t> mask(tensor, {dlpack::boolean, 8, 1});
  if (mask.size[1] != 1) throw std::invalid_argument("a mask must be for all heads");
  return {mask.data,      mask.size[0],   mask.size[2],  mask.size[3],
          mask.stride[0], mask.stride[2], mask.stride[3]};
}

// Without the words of its mask and its output.
inline Attention attention_of(const dlpack::Tensor& queries, const dlpack::Tensor& keys,
                              const dlpack::Tensor& values, float scale) {
  constexpr dlpack::DataType float32{dlpack::floating, 32, 1};
  const FourAxes<float> query(queries, float32), key(keys, float32), value(values, float32);
  if (key.size[0] != query.size[0] || value.size[0] != query.size[0] ||
      value.size[1] != key.size[1] || value.size[2] != key.size[2] ||
      key.size[3] != query.size[3] || query.size[1] % key.size[1] != 0) {
    throw std::invalid_argument("queries, keys and values must be of one attention");
  }
  Attention all{};
  all.batch = query.size[0];
  all.heads = query.size[1];
  all.key_heads = key.size[1];
  all.queries = query.size[2];
  all.keys = key.size[2];
  all.head_dim = query.size[3];
  all.value_dim = value.size[3];
  all.query = query.vectors();
  all.key = key.vectors();
  all.value = value.vectors();
  all.scale = scale;
  return all;
}

}  // namespace fastground
