// The answer of boxes as five tensors over one piece of memory:
//
//     x1 y1 x2 y2 | area | mass | score     rows, as the kernels write them
//        xyxy       area   mass   score     are columns of them
//     found                                 area > 0, for a region has one cell at least
//
// The last tensor that goes takes the memory with it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "exchange.hpp"
#include "map_view.hpp"

namespace fastground {

class BoxTensors {
 public:
  static constexpr int parts = 5;

  // Of a batch of so many boxes; batch_size(axis) is asked for each of its axes.
  BoxTensors(std::int64_t count, std::size_t axes, const auto& batch_size)
      : count_(count), axes_(axes), layout_(3 * axes + 2, 1) {
    std::int64_t behind = 1;
    for (std::size_t axis = axes; axis-- > 0; behind *= shape()[axis]) {
      shape()[axis] = batch_size(axis);
      found_strides()[axis] = behind;
      row_strides()[axis] = behind * columns;
    }
    const bool none_negative = std::all_of(shape(), shape() + axes, [](auto n) { return n >= 0; });
    if (behind != count || !none_negative) {
      throw std::invalid_argument("batch must be that of the combined maps");
    }
    shape()[axes] = 4;
    memory_ = std::make_unique_for_overwrite<std::byte[]>(count * (sizeof(Box) + sizeof(bool)));
  }

  // Where boxes writes.
  Box* rows() { return reinterpret_cast<Box*>(memory_.get()); }

  // To be called when the rows are written.
  void look_which_are_found() {
    for (std::int64_t i = 0; i < count_; ++i) found()[i] = rows()[i].area > 0;
  }

  // xyxy, area, mass, score, found.
  dlpack::Managed* part(int i) {
    constexpr dlpack::DataType float32{dlpack::floating, 32, 1}, flag{dlpack::boolean, 8, 1};
    dlpack::Managed& made = made_[i];
    made = {{dlpack::major_version, 0}, this, &release, 0, {}};
    if (i == parts - 1) {
      made.tensor = view(found(), axes_, flag, found_strides());
    } else {
      float* const first = reinterpret_cast<float*>(rows());
      made.tensor = i == 0 ? view(first, axes_ + 1, float32, row_strides())
                           : view(first + 3 + i, axes_, float32, row_strides());
    }
    return &made;
  }

 private:
  static constexpr std::int64_t columns = sizeof(Box) / sizeof(float);

  // The three in one piece: the batch and 4; for found; for the rows, and 1.
  std::int64_t* shape() { return layout_.data(); }
  std::int64_t* found_strides() { return shape() + axes_ + 1; }
  std::int64_t* row_strides() { return found_strides() + axes_; }

  bool* found() { return reinterpret_cast<bool*>(rows() + count_); }

  static void release(dlpack::Managed* part) {
    auto* all = static_cast<BoxTensors*>(part->owner);
    if (all->owners_.fetch_sub(1) == 1) delete all;
  }

  dlpack::Tensor view(void* data, std::size_t axes, dlpack::DataType dtype, std::int64_t* strides) {
    return {data, {dlpack::cpu, 0}, static_cast<int>(axes), dtype, shape(), strides, 0};
  }

  std::atomic<int> owners_{parts};
  std::int64_t count_;
  std::size_t axes_;
  std::vector<std::int64_t> layout_;
  std::unique_ptr<std::byte[]> memory_;
  std::array<dlpack::Managed, parts> made_;
};

}  // namespace fastground
