// What CUDA gives to kernels, on the CPU: so that the very sources of the kernels run where there
// is no GPU. Include this file's folder before csrc/, whose launch.cuh is nvcc's.
//
// A block's threads are fibers of one thread. One runs until it waits for others, at a ballot, a
// shuffle or a barrier; then the next runs, and when all of a warp (or of a block) have come, the
// first goes on. Lanes must meet at the same line of the source, or the run ends with a message.
// Kernels are run one block after another; what several warps do at once is done in some order,
// which FIBER_ORDER changes. What they touch without a barrier between, races.cpp finds.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "races.hpp"

#define __device__
#define __global__
#define __host__
#define __noinline__
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

constexpr int lanes = 32;
constexpr std::size_t stack_bytes = 64 * 1024;
constexpr std::size_t shared_room = 48 * 1024;

enum class Place { none, ballot, shuffle, warp_barrier, block_barrier };

struct Fiber {
  jmp_buf here;
  ucontext_t begin;
  std::vector<char> stack = std::vector<char>(stack_bytes);
  bool started = false;
  bool done = false;
  Place place = Place::none;
  races::Site site;
  std::uint64_t value = 0;  // given to the others
};

inline std::vector<Fiber> fibers;
inline unsigned current;
inline unsigned threads;
inline jmp_buf scheduler;
inline ucontext_t scheduler_context;
inline std::function<void()> body;
inline std::vector<std::uint64_t> gathered;  // of each thread, at its last meeting
alignas(64) inline std::byte shared[shared_room];
inline std::size_t shared_bytes;

NOT_WATCHED inline void fail(const char* what) {
  std::fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, current, what);
  std::exit(3);
}

NOT_WATCHED inline void enter() {
  body();
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// Gives a value and waits until all of the warp, or of the block, have given theirs.
NOT_WATCHED inline void meet(Place place, std::uint64_t value, const races::Site& site) {
  Fiber& fiber = fibers[current];
  fiber.place = place;
  fiber.site = site;
  fiber.value = value;
  if (_setjmp(fiber.here) == 0) _longjmp(scheduler, 1);
}

NOT_WATCHED inline void resume(unsigned thread) {
  current = thread;
  threadIdx.x = thread;
  Fiber& fiber = fibers[thread];
  races::resume(thread, fiber.stack.data(), fiber.stack.size());
  if (_setjmp(scheduler) != 0) {
    races::suspend();
    return;
  }
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.begin);
  fiber.begin.uc_stack.ss_sp = fiber.stack.data();
  fiber.begin.uc_stack.ss_size = fiber.stack.size();
  fiber.begin.uc_link = nullptr;
  makecontext(&fiber.begin, enter, 0);
  setcontext(&fiber.begin);
}

// The fiber that stands for the threads [begin, end), which wait at one place; null if all are
// done.
NOT_WATCHED inline const Fiber* waiting(unsigned begin, unsigned end) {
  const Fiber* first = nullptr;
  for (unsigned t = begin; t < end; ++t) {
    const Fiber& fiber = fibers[t];
    if (fiber.done) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.place != first->place || fiber.site.line() != first->site.line() ||
        std::strcmp(fiber.site.file_name(), first->site.file_name()) != 0) {
      current = t;
      fail("waits elsewhere than another lane");
    }
  }
  return first;
}

NOT_WATCHED inline void release(unsigned begin, unsigned end) {
  for (unsigned t = begin; t < end; ++t) gathered[t] = fibers[t].value;
}

NOT_WATCHED inline void run_warp(unsigned begin, bool backwards) {
  for (unsigned i = 0; i < lanes; ++i) {
    const unsigned t = begin + (backwards ? lanes - 1 - i : i);
    if (!fibers[t].done) resume(t);
  }
}

NOT_WATCHED inline void run_block(bool backwards) {
  for (unsigned t = 0; t < threads; ++t) {
    fibers[t].started = fibers[t].done = false;
    fibers[t].place = Place::none;
  }
  const unsigned warps = threads / lanes;
  while (true) {
    unsigned done = 0;
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned begin = (backwards ? warps - 1 - w : w) * lanes;
      while (true) {  // as far as this warp comes alone
        run_warp(begin, backwards);
        const Fiber* fiber = waiting(begin, begin + lanes);
        if (fiber == nullptr) {
          done += 1;
          break;
        }
        release(begin, begin + lanes);
        if (fiber->place == Place::block_barrier) break;
        if (fiber->place == Place::warp_barrier) races::warp_barrier(begin / lanes, fiber->site);
      }
    }
    if (done == warps) return;
    if (done > 0) fail("a barrier that not all warps reach");
    races::block_barrier(waiting(0, threads)->site);
  }
}

}  // namespace emulated

// What kernels call. Each call says where it stands in the source.

using races::Site;

NOT_WATCHED inline unsigned __ballot_sync(unsigned, bool value, Site site = Site::current()) {
  const unsigned first = threadIdx.x / 32 * 32;
  emulated::meet(emulated::Place::ballot, value, site);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    bits |= static_cast<unsigned>(emulated::gathered[first + lane] != 0) << lane;
  }
  return bits;
}
inline bool __any_sync(unsigned mask, bool value, Site site = Site::current()) {
  return __ballot_sync(mask, value, site) != 0;
}
inline bool __all_sync(unsigned mask, bool value, Site site = Site::current()) {
  return __ballot_sync(mask, value, site) == ~0u;
}

template <class T>
NOT_WATCHED T shuffled(T value, unsigned from, const Site& site) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  const unsigned first = threadIdx.x / 32 * 32;
  emulated::meet(emulated::Place::shuffle, bits, site);
  bits = emulated::gathered[first + from % 32];
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int other, Site site = Site::current()) {
  return shuffled(value, threadIdx.x % 32 ^ static_cast<unsigned>(other), site);
}
template <class T>
T __shfl_sync(unsigned, T value, int from, Site site = Site::current()) {
  return shuffled(value, static_cast<unsigned>(from), site);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by, Site site = Site::current()) {
  const unsigned lane = threadIdx.x % 32;
  return shuffled(value, lane >= by ? lane - by : lane, site);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned by, Site site = Site::current()) {
  const unsigned lane = threadIdx.x % 32;
  return shuffled(value, lane + by < 32 ? lane + by : lane, site);
}
inline int __reduce_add_sync(unsigned, int value, Site site = Site::current()) {
  for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(~0u, value, half, site);
  return value;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value, Site site = Site::current()) {
  for (int half = 16; half > 0; half /= 2) {
    const unsigned other = __shfl_xor_sync(~0u, value, half, site);
    value = other > value ? other : value;
  }
  return value;
}
inline unsigned __reduce_or_sync(unsigned, unsigned value, Site site = Site::current()) {
  for (int half = 16; half > 0; half /= 2) value |= __shfl_xor_sync(~0u, value, half, site);
  return value;
}

inline void __syncwarp(Site site = Site::current()) {
  emulated::meet(emulated::Place::warp_barrier, 0, site);
}
inline void __syncthreads(Site site = Site::current()) {
  emulated::meet(emulated::Place::block_barrier, 0, site);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (x >> i & 1u) << (31 - i);
  return result;
}

template <class T, class Step>
NOT_WATCHED __attribute__((noinline)) T atomic_step(T* at, Step&& step) {
  races::atomic(at, sizeof(T), __builtin_return_address(0));
  const T before = *at;
  *at = step(before);
  return before;
}
template <class T>
T atomicAdd(T* at, T value) {
  return atomic_step(at, [&](T x) { return static_cast<T>(x + value); });
}
template <class T>
T atomicMin(T* at, T value) {
  return atomic_step(at, [&](T x) { return value < x ? value : x; });
}
template <class T>
T atomicMax(T* at, T value) {
  return atomic_step(at, [&](T x) { return value > x ? value : x; });
}
template <class T>
T atomicOr(T* at, T value) {
  return atomic_step(at, [&](T x) { return static_cast<T>(x | value); });
}

namespace fastground {
namespace {

// So few that small batches, too, are done in every way, and that blocks do more than one map.
constexpr std::int64_t few_maps = 8;
constexpr std::int64_t many_maps = 32;
constexpr std::int64_t most_blocks = 5;
constexpr std::int64_t most_in_workspace = 3;
constexpr std::int64_t most_of_lanes = 2;

inline void* shared_memory() { return emulated::shared; }

template <class... Parameters, class... Arguments>
NOT_WATCHED const char* launch(void (*kernel)(Parameters...), int, void*, unsigned blocks,
                               unsigned threads, std::size_t shared_bytes, Arguments... arguments) {
  if (threads % emulated::lanes != 0 || threads > 1024 || blocks == 0) return "wrong launch";
  if (shared_bytes > emulated::shared_room) return "too much shared memory";
  emulated::threads = threads;
  if (emulated::fibers.size() < threads) emulated::fibers = std::vector<emulated::Fiber>(threads);
  emulated::gathered.resize(emulated::fibers.size());
  emulated::body = [&] { kernel(arguments...); };
  static const bool backwards = std::getenv("FIBER_ORDER") != nullptr;
  blockDim.x = threads;
  gridDim.x = blocks;
  races::begin_launch(emulated::shared, emulated::shared_room);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    // Memory holds anything at first, and nothing is written behind it.
    for (std::size_t i = 0; i < emulated::shared_room; ++i) emulated::shared[i] = std::byte{0xa5};
    races::begin_block(block);
    emulated::run_block(backwards);
    for (std::size_t i = shared_bytes; i < emulated::shared_room; ++i) {
      if (emulated::shared[i] != std::byte{0xa5}) emulated::fail("wrote behind its shared memory");
    }
  }
  return nullptr;
}

}  // namespace
}  // namespace fastground
