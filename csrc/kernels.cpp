// All kernels, for one instruction set: compiled once for each, with FASTGROUND_KERNELS naming it.
#include "kernels.hpp"

#include "attention.hpp"
#include "boxes.hpp"
#include "entropy.hpp"
#include "foreground.hpp"
#include "largest.hpp"
#include "smooth.hpp"

#define FASTGROUND_STRING(x) #x
#define FASTGROUND_NAME(x) FASTGROUND_STRING(x)
#define FASTGROUND_JOIN(x, y) x##y
#define FASTGROUND_TABLE(x) FASTGROUND_JOIN(x, _kernels)

namespace fastground {
namespace {

template <class Workspace>
std::size_t scratch_of(auto... arguments) {
  Scratch scratch(nullptr);
  Workspace(scratch, arguments...);
  return scratch.used();
}

std::size_t scratch_bytes(int grid_h, int grid_w, int taps) {
  const std::size_t of_each[] = {
      grid_w > 32 ? 0 : scratch_of<Block<std::uint32_t>>(grid_h, grid_w),
      grid_w > 64 ? 0 : scratch_of<Block<std::uint64_t>>(grid_h, grid_w),
      scratch_of<OneEntropy>(grid_h, grid_w),
      scratch_of<BoxesWorkspace>(grid_h, grid_w, taps),
  };
  std::size_t most = 0;
  for (const std::size_t bytes : of_each) most = bytes > most ? bytes : most;
  return most;
}

}  // namespace

const Kernels FASTGROUND_TABLE(FASTGROUND_KERNELS) = {
    FASTGROUND_NAME(FASTGROUND_KERNELS),
    head_stats,
    binarize,
    label,
    combine,
    boxes,
    largest,
    attention,
    attention_bytes,
    scratch_bytes,
};

}  // namespace fastground
