// Finds races in kernels that run on the CPU (launch.cuh): accesses to the same byte by two lanes,
// not both of them reads or both atomic, between which no barrier lies.
//
//     compiler   -fsanitize=thread: a call of __tsan_read4(at), __tsan_write8(at), ... before each
//                access to memory; those functions are here, not the sanitizer's own
//     clock      counts barriers. An access is ordered before the present where a barrier lies
//                between that held both lanes: their warp's, their block's, or the end of a launch.
//                Two blocks of a launch have none.
//     shadow     of each byte the last write, and of reads and of atomic steps the last one, the
//                last by another lane and the last by another warp, which tell all that counts;
//                of memory that no kernel has ever written nothing is kept
//
// Only barriers order memory: a ballot or a shuffle hands over its number, and no more. In which
// order lanes happen to run does not matter: what any order could spoil is found in each. Told,
// too, is shared memory of which is read what nobody has written.
#include "races.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

extern "C" void __tsan_init() {}

namespace {

using Clock = std::uint32_t;
using Lane = std::uint32_t;  // a block has 1,024
enum class Kind { read, write, atomic };

struct Access {
  Clock when = 0;
  Lane lane = 0;
  std::int32_t place = 0;  // in the code, from __tsan_init on
};

// The last access of a kind, the last by another lane than that one's, and by another warp.
struct Accesses {
  std::array<Access, 3> last;

  void add(const Access& access) {
    if (last[0].lane / 32 != access.lane / 32) last[2] = last[0];
    if (last[0].lane != access.lane) last[1] = last[0];
    last[0] = access;
  }
};

struct Byte {
  Access write;
  Accesses reads, atomics;
};

constexpr std::size_t page_bytes = 1024;
using Page = std::array<Byte, page_bytes>;
std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;

Clock now = 0;
Clock launch_begin, block_begin, block_ordered;
std::array<Clock, 32> warp_ordered;
Lane first_lane, lane;
bool watching = false;
std::uintptr_t stack_begin, stack_end, shared_begin, shared_end;

std::set<std::string> found;
std::set<std::pair<std::int32_t, std::int32_t>> found_at;  // so that each is put to words once
std::set<std::string> sites;                               // of barriers that were met
std::string left_out;                                      // the one that counts for nothing

Page* page_of(std::uintptr_t at, bool made) {
  static std::uintptr_t number = 0;
  static Page* page = nullptr;
  if (at / page_bytes == number && (page != nullptr || !made)) return page;
  number = at / page_bytes;
  auto found = pages.find(number);
  if (found == pages.end() && made) found = pages.emplace(number, std::make_unique<Page>()).first;
  page = found == pages.end() ? nullptr : found->second.get();
  return page;
}

bool is_shared(std::uintptr_t at) { return at >= shared_begin && at < shared_end; }

// Whether no barrier lies between an access and the present.
bool is_apart(const Access& access, std::uintptr_t at) {
  if (access.when < launch_begin || access.lane == lane) return false;
  if (access.when < block_begin) return !is_shared(at);  // another block's
  if (access.lane / 32 != lane / 32) return access.when >= block_ordered;
  return access.when >= warp_ordered[lane % 1024 / 32];
}

std::string where(std::int32_t place) {
  const char* code = reinterpret_cast<const char*>(&__tsan_init) + place;
  Dl_info info;
  dladdr(code, &info);
  char text[32];
  std::snprintf(text, sizeof text, "%#zx", code - static_cast<const char*>(info.dli_fbase) - 1);
  return text;
}

void tell(const char* before, std::int32_t there, const char* what, std::int32_t here,
          std::uintptr_t at) {
  if (!found_at.emplace(there, here).second) return;
  found.insert(std::string(before) + " " + where(there) + " " + what + " " + where(here) +
               (is_shared(at) ? " shared" : " global"));
}

void touch(const void* from, std::size_t bytes, Kind kind, const void* code) {
  const auto begin = reinterpret_cast<std::uintptr_t>(from);
  if (!watching || (begin >= stack_begin && begin < stack_end)) return;
  const auto place = static_cast<std::int32_t>(static_cast<const char*>(code) -
                                               reinterpret_cast<const char*>(&__tsan_init));
  const char* what = kind == Kind::read ? "read" : kind == Kind::write ? "write" : "atomic";
  bool written = kind == Kind::write || !is_shared(begin);
  for (std::uintptr_t at = begin; at < begin + bytes; ++at) {
    Page* page = page_of(at, kind != Kind::read);
    if (page == nullptr) continue;
    Byte& byte = (*page)[at % page_bytes];
    written |= std::max(byte.write.when, byte.atomics.last[0].when) >= block_begin;
    if (is_apart(byte.write, at)) tell("write", byte.write.place, what, place, at);
    for (int i = 0; i < 3; ++i) {
      const Access& read = byte.reads.last[i];
      const Access& step = byte.atomics.last[i];
      if (kind != Kind::read && is_apart(read, at)) tell("read", read.place, what, place, at);
      if (kind != Kind::atomic && is_apart(step, at)) tell("atomic", step.place, what, place, at);
    }
    const Access access = {now, lane, place};
    if (kind == Kind::read) byte.reads.add(access);
    if (kind == Kind::write) byte.write = access;
    if (kind == Kind::atomic) byte.atomics.add(access);
  }
  if (!written) tell("nothing", place, what, place, begin);
}

bool counts(const races::Site& site) {
  const char* file = std::strrchr(site.file_name(), '/');
  const std::string name = std::string(file == nullptr ? site.file_name() : file + 1) + ":" +
                           std::to_string(site.line());
  sites.insert(name);
  return name != left_out;
}

const char* lines_of(const std::set<std::string>& lines) {
  static std::string text;
  text.clear();
  for (const std::string& line : lines) text += line + "\n";
  return text.c_str();
}

}  // namespace

namespace races {

void begin_launch(const void* shared, std::size_t bytes) {
  shared_begin = reinterpret_cast<std::uintptr_t>(shared);
  shared_end = shared_begin + bytes;
  launch_begin = ++now;
}

void begin_block(unsigned block) {
  first_lane = block * 1024;
  block_begin = block_ordered = ++now;
  warp_ordered.fill(now);
}

void resume(unsigned thread, const void* stack, std::size_t bytes) {
  lane = first_lane + thread;
  stack_begin = reinterpret_cast<std::uintptr_t>(stack);
  stack_end = stack_begin + bytes;
  watching = true;
}

void suspend() { watching = false; }

void warp_barrier(unsigned warp, const Site& site) {
  if (counts(site)) warp_ordered[warp] = ++now;
}

void block_barrier(const Site& site) {
  if (!counts(site)) return;
  block_ordered = ++now;
  warp_ordered.fill(now);
}

void atomic(const void* at, std::size_t bytes, const void* code) {
  touch(at, bytes, Kind::atomic, code);
}

}  // namespace races

extern "C" {

// For Python, a line each: the races found since the launch that is asked after, "BEFORE PLACE NOW
// PLACE MEMORY", and the barriers that were met; and which of these is to count for nothing.
const char* races_found() { return lines_of(found); }
const char* races_barriers() { return lines_of(sites); }
void races_begin(const char* without) {
  found.clear();
  found_at.clear();
  left_out = without;
}

// For the compiler.
#define TOUCH(name, kind, bytes) \
  void __tsan_##name(void* at) { touch(at, bytes, Kind::kind, __builtin_return_address(0)); }
#define TOUCHES(bytes)                      \
  TOUCH(read##bytes, read, bytes)           \
  TOUCH(write##bytes, write, bytes)         \
  TOUCH(unaligned_read##bytes, read, bytes) \
  TOUCH(unaligned_write##bytes, write, bytes)
TOUCHES(1)
TOUCHES(2)
TOUCHES(4)
TOUCHES(8)
TOUCHES(16)
void __tsan_read_range(void* at, std::size_t bytes) {
  touch(at, bytes, Kind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* at, std::size_t bytes) {
  touch(at, bytes, Kind::write, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
