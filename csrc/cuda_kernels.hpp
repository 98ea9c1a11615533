// The operations on CUDA tensors: what kernels.hpp says, on a device's stream.
//
// A call starts kernels and returns; it neither waits nor allocates, so that it can be captured in
// a CUDA graph. It returns null, or what CUDA says against it. The maps of a batch may lie
// anywhere, but the cells of a map must lie one after another (stride_column 1, stride_row grid_w).
//
// In reading order:
//     warp.cuh        what the lanes of a warp do together
//     cells.cuh       a map: its sum, its cut, a bit for each cell
//     stats.cuh       head_stats up to 32 x 32: a lane a map
//     regions.cuh     the regions of one map, by a warp; large_stats.cuh: head_stats beyond, and
//                     of few maps
//     foreground.cuh  binarize, label
//     combine.cuh     combine
//     boxes.cuh       boxes, with hull.cuh; boxes_by_rows.cuh, rows.cuh: those of small grids
#pragma once

#include <cstddef>
#include <cstdint>

#include "map_view.hpp"

namespace fastground {

enum class Operation { head_stats, label, combine, boxes };

// Where and with what a call runs.
struct CudaCall {
  int device;
  void* stream;
  void* workspace;              // of cuda_workspace_bytes on the device; may be null if that is 0
  const std::uint64_t* n_ln_n;  // fixed_point.hpp's, of 0 to 256 x 256 cells, on the device
};

// Working memory for `count` results, beyond what a block of threads has; most often none.
std::size_t cuda_workspace_bytes(Operation operation, int grid_h, int grid_w, std::int64_t count);

const char* cuda_head_stats(const MapView& maps, Weight weight, Cut cut, Empty empty,
                            const CudaCall& call, float* sums, float* entropies);
const char* cuda_binarize(const MapView& maps, Cut cut, const CudaCall& call, bool* mask);
const char* cuda_label(const MapView& maps, Cut cut, const CudaCall& call, std::int32_t* labels);

// The taps' weights lie on the host, and once more on the device.
const char* cuda_combine(const MapView& maps, int heads, const Taps& taps, const double* weights,
                         const CudaCall& call, float* combined);

// Of `valid` without data all cells are valid.
const char* cuda_boxes(const MapView& maps, int heads, const Taps& taps, const double* weights,
                       const MapView& valid, Keep keep, const CudaCall& call, Box* out,
                       bool* found);

}  // namespace fastground
