// Working memory that the caller gave, handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastground {
namespace {

// From null it hands out nothing and only counts: the same constructors that lay out a workspace
// also measure it.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  // `count` elements, aligned to 64 bytes and with 64 bytes behind them that may be read.
  template <class T>
  T* take(std::size_t count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 127) / 64 * 64;
    return piece;
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace
}  // namespace fastground
