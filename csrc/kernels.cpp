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
  const std::size_t cells = grid_h * grid_w;
  return scratch_of<OneMap>(grid_h, grid_w) + 8 * cells + 128 +
         scratch_of<BoxesWorkspace>(grid_h, grid_w, taps) +
         scratch_of<Block<std::uint64_t>>(grid_h, grid_w);
}

}  // namespace

const Kernels FASTGROUND_TABLE(FASTGROUND_KERNELS) = {
    FASTGROUND_NAME(FASTGROUND_KERNELS), head_stats, binarize, label, combine, boxes, scratch_bytes,
};

}  // namespace fastground
