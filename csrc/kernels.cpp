// All kernels, for one instruction set: compiled once for each, with FASTGROUND_KERNELS naming it.
#include "kernels.hpp"

#include "boxes.hpp"
#include "entropy.hpp"
#include "foreground.hpp"
#include "smooth.hpp"

#define FASTGROUND_STRING(x) #x
#define FASTGROUND_NAME(x) FASTGROUND_STRING(x)
#define FASTGROUND_JOIN(x, y) x##y
#define FASTGROUND_TABLE(x) FASTGROUND_JOIN(x, _kernels)

namespace fastground {
namespace {

template <class... Workspaces>
std::size_t scratch_of(auto... arguments) {
  Scratch scratch(nullptr);
  (Workspaces(scratch, arguments...), ...);
  return scratch.used();
}

std::size_t scratch_bytes(int grid_h, int grid_w, int taps) {
  const std::size_t one = scratch_of<OneMap>(grid_h, grid_w);
  return one + scratch_of<BoxesWorkspace>(grid_h, grid_w, taps) + 8 * grid_h * grid_w + 128;
}

}  // namespace

const Kernels FASTGROUND_TABLE(FASTGROUND_KERNELS) = {
    FASTGROUND_NAME(FASTGROUND_KERNELS), head_stats, binarize, label, combine, boxes, scratch_bytes,
};

}  // namespace fastground
