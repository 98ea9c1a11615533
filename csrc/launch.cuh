// How a kernel is started by nvcc. A test that runs kernels on the CPU brings its own such file.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fastground {
namespace {

// So many maps can each have a warp at once: an H200 holds 16 such blocks a multiprocessor, 2,112.
constexpr std::int64_t few_maps = 2048;
// More than so many leave no warp idle if each loads 32.
constexpr std::int64_t many_maps = 16384;

constexpr std::int64_t most_blocks = 1 << 20;
constexpr std::int64_t most_in_workspace = 512;  // blocks whose memory is not shared
constexpr std::int64_t most_of_lanes = 4096;     // blocks whose warps prepare for more than one map

__device__ inline void* shared_memory() {
  extern __shared__ int4 memory[];
  return memory;
}

// Starts a kernel on a device's stream. Returns null, or what CUDA says against it.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int device, void* stream, unsigned blocks,
                   unsigned threads, std::size_t shared_bytes, Arguments... arguments) {
  int before = device;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before != device) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    error = cudaGetLastError();
    if (before != device) cudaSetDevice(before);
  } else {
    cudaGetLastError();  // so that it is not told of the next launch once more
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace fastground
