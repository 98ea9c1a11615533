// Work shared among threads, by a small pool that belongs to this library alone.
#pragma once

#include <cstdint>
#include <functional>

namespace fastground {

using Slice = std::function<void(std::int64_t begin, std::int64_t end)>;

// At most so many threads work on one call, the calling one among them; at first as many as there
// are processors that this process may use. A call that finds the workers busy is done alone.
void set_num_threads(int count);
int num_threads();

// Calls `slice` until all of [0, count) is done, each time with `grain` at most: on the calling
// thread, and on workers where there is more than one slice. Returns when all is done; the first
// exception of any thread leaves here.
void parallel_for(std::int64_t count, std::int64_t grain, const Slice& slice,
                  int threads = num_threads());

}  // namespace fastground
