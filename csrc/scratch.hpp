// Working memory that the caller gave, handed out piece by piece.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastground {
namespace {

// From null it hands out nothing and only counts: the same constructors that lay out a workspace
// also measure it.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<std::byte*>(memory)) {}

  // `count` elements, aligned to 64 bytes and with 64 bytes behind them that may be read and
  // written.
  template <class T>
  T* take(std::size_t count) {
    T* piece = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 127) / 64 * 64;
    fence();
    return piece;
  }

  std::size_t used() const { return used_; }

#ifdef __SANITIZE_ADDRESS__
  // Between two pieces lie forbidden bytes, as between two allocations.
  ~Scratch() {
    if (memory_ != nullptr) ASAN_UNPOISON_MEMORY_REGION(memory_, used_);
  }

 private:
  void fence() {
    if (memory_ != nullptr) ASAN_POISON_MEMORY_REGION(memory_ + used_, 64);
    used_ += 64;
  }
#else

 private:
  void fence() {}
#endif

  std::byte* memory_;
  std::size_t used_ = 0;
};

}  // namespace
}  // namespace fastground
