// What a run of the kernels on the CPU tells of their memory, so that races are found: races.cpp.
// Unless FIND_RACES is defined nothing is told.
#pragma once

#include <cstddef>
#include <source_location>

namespace races {

using Site = std::source_location;

#if defined(FIND_RACES)
void begin_launch(const void* shared, std::size_t bytes);
void begin_block(unsigned block);
void resume(unsigned thread, const void* stack, std::size_t bytes);
void suspend();
void warp_barrier(unsigned warp, const Site& site);
void block_barrier(const Site& site);
void atomic(const void* at, std::size_t bytes, const void* code);
#else
inline void begin_launch(const void*, std::size_t) {}
inline void begin_block(unsigned) {}
inline void resume(unsigned, const void*, std::size_t) {}
inline void suspend() {}
inline void warp_barrier(unsigned, const Site&) {}
inline void block_barrier(const Site&) {}
inline void atomic(const void*, std::size_t, const void*) {}
#endif

}  // namespace races

// Of functions that are no part of a kernel: what they touch is nobody's business.
#define NOT_WATCHED __attribute__((no_sanitize("thread")))
