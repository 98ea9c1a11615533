// The pool of threads.
//
// A job lies on the stack of the thread that calls: a function, and a counter from which everyone
// takes the next slice, so that nobody waits for a slow neighbour. The caller posts the job, works
// like any other, takes the job down when the counter has run out, and waits for the workers that
// had joined it; those that wake later find nothing and sleep on.
//
//     caller    post | slice 0 | slice 2 | slice 5 | take down | wait | return
//     worker         wake | slice 1 | slice 3 | slice 4 | leave ^
//
// There is one job at a time: a thread that calls meanwhile does its work alone. Workers start when
// they are first needed and never end. The pool is never destroyed, so nothing happens at exit. A
// forked child has none of the workers and perhaps a locked mutex: it forgets the pool, unread, and
// makes its own.
#include "threads.hpp"

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace fastground {
namespace {

// The rounding and the handling of sub-normals that C++ starts with, whatever a program or another
// library has set for this thread: numbers do not depend on who computes them.
class DefaultNumbers {
 public:
  DefaultNumbers(const DefaultNumbers&) = delete;
  DefaultNumbers& operator=(const DefaultNumbers&) = delete;
#ifdef __SSE2__  // the same as below, without the old registers that nothing here uses
  DefaultNumbers() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultNumbers() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  DefaultNumbers() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultNumbers() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

struct Job {
  const Slice& slice;
  const std::int64_t count;
  const std::int64_t grain;
  int seats;  // workers that may still join
  int working = 0;
  std::atomic<std::int64_t> next = 0;
  std::atomic<bool> failed = false;
  std::exception_ptr error = nullptr;

  void work() noexcept {
    const DefaultNumbers numbers;
    try {
      for (std::int64_t begin; !failed && (begin = next.fetch_add(grain)) < count;) {
        slice(begin, std::min(begin + grain, count));
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

class Pool {
 public:
  void run(Job& job) {
    {
      const std::lock_guard lock(mutex_);
      if (job_ == nullptr) {
        hire(job.seats);
        job_ = &job;
        posted_.notify_all();
      }
    }
    job.work();
    std::unique_lock lock(mutex_);
    if (job_ == &job) job_ = nullptr;
    left_.wait(lock, [&] { return job.working == 0; });
  }

 private:
  void hire(int wanted) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);  // signals are for the program's own threads
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; workers_ < wanted; ++workers_) std::thread(&Pool::serve, this).detach();
    } catch (const std::exception&) {  // no more threads here: those that exist will do
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      posted_.wait(lock, [&] { return job_ != nullptr && job_->seats > 0; });
      Job& job = *job_;
      job.seats -= 1;
      job.working += 1;
      lock.unlock();
      job.work();
      lock.lock();
      job.working -= 1;
      if (job.working == 0) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable posted_;
  std::condition_variable left_;
  Job* job_ = nullptr;
  int workers_ = 0;
};

std::atomic<Pool*> current_pool = nullptr;
std::atomic<int> chosen_threads = 0;  // 0: not chosen

const int registered = pthread_atfork(nullptr, nullptr, [] { current_pool = nullptr; });

Pool& pool() {
  Pool* found = current_pool;
  if (found == nullptr) {
    Pool* made = new Pool;
    if (current_pool.compare_exchange_strong(found, made)) return *made;
    delete made;  // another thread was faster
  }
  return *found;
}

int usable_processors() {
#ifdef __linux__
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof(usable), &usable) == 0) return CPU_COUNT(&usable);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

void set_num_threads(int count) { chosen_threads = count; }

int num_threads() {
  const int chosen = chosen_threads;
  return chosen > 0 ? chosen : usable_processors();
}

void parallel_for(std::int64_t count, std::int64_t grain, const Slice& slice, int most) {
  if (count <= grain) {
    const DefaultNumbers numbers;
    slice(0, count);
    return;
  }
  const std::int64_t slices = (count + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<std::int64_t>(slices, most));
  Job job{slice, count, grain, threads - 1};
  if (threads == 1) {
    job.work();
  } else {
    pool().run(job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fastground
