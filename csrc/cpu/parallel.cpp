#include "cpu/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fastpower {
namespace {

constexpr int kSpin = 20000;  // ~50 us: bridges the gap between two kernels of one decode step

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

int default_threads() {
  if (const char* text = std::getenv("FASTPOWER_NUM_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1) return n;
  }
  return available_cores();
}

struct Job {
  Job(FunctionRef<int64_t> what, int64_t count) : fn(what), tasks(count) {}

  FunctionRef<int64_t> fn;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> running{0};  // workers that may still touch this job
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the task that failed first; read when nobody works any more

  // Never throws: a worker has nobody above it to catch, and the caller must not leave while workers hold
  // this job.
  void work() noexcept {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(i);
    } catch (...) {
      if (!failed.exchange(true, std::memory_order_acq_rel)) error = std::current_exception();
      next.store(tasks, std::memory_order_relaxed);  // the rest is not worth doing
    }
  }
};

class Pool {
 public:
  void run(int64_t tasks, int threads, FunctionRef<int64_t> fn) {
    std::lock_guard<std::mutex> turn(turn_);
    const int workers = grow(threads - 1);
    Job job(fn, tasks);
    const int helpers = static_cast<int>(std::min<int64_t>(workers + 1, tasks)) - 1;
    job.running.store(helpers, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      tickets_.store(helpers, std::memory_order_release);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire) > 0) wake_.notify_all();
    job.work();
    // A helper that never woke up must not be waited for: take its ticket back.
    int taken_back = 0;
    for (int t = tickets_.load(std::memory_order_acquire); t > 0;) {
      if (tickets_.compare_exchange_weak(t, t - 1, std::memory_order_acq_rel)) {
        ++taken_back;
        t = tickets_.load(std::memory_order_acquire);
      }
    }
    job.running.fetch_sub(taken_back, std::memory_order_acq_rel);
    while (job.running.load(std::memory_order_acquire) > 0) pause_cpu();
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  // Up to so many workers: fewer where the system gives no more threads. The next job asks again.
  int grow(int workers) {
    while (workers_ < workers) {
      try {
        std::thread([this] { loop(); }).detach();
      } catch (const std::exception&) {
        break;
      }
      ++workers_;
    }
    return std::min(workers_, workers);
  }

  bool take_ticket() {
    for (int t = tickets_.load(std::memory_order_acquire); t > 0;)
      if (tickets_.compare_exchange_weak(t, t - 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  void loop() {
    for (;;) {
      if (take_ticket()) {
        Job* job = job_;  // valid: run() waits until every taken ticket is done
        job->work();
        job->running.fetch_sub(1, std::memory_order_acq_rel);
        continue;
      }
      const uint64_t seen = epoch_.load(std::memory_order_acquire);
      bool news = false;
      for (int i = 0; i < kSpin && !news; ++i) {
        pause_cpu();
        news = epoch_.load(std::memory_order_acquire) != seen || tickets_.load(std::memory_order_relaxed) > 0;
      }
      if (news) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1, std::memory_order_acq_rel);
      wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      sleeping_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
  Job* job_ = nullptr;
  std::atomic<int> tickets_{0}, sleeping_{0};
  std::atomic<uint64_t> epoch_{0};
};

std::atomic<int> g_threads{0};
std::atomic<Pool*> g_pool{nullptr};
thread_local bool t_inside = false;

// While this thread runs a job, what its tasks ask for is done by the thread that asks.
struct Inside {
  Inside() { t_inside = true; }
  ~Inside() { t_inside = false; }
};

// Leaked on purpose: detached workers may outlive static destructors. After fork() the child has no workers,
// so it starts a new pool.
Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    g_pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, [] { g_pool.store(new Pool); });
  });
  return *g_pool.load();
}

}  // namespace

int num_threads() {
  int n = g_threads.load(std::memory_order_relaxed);
  if (n == 0) g_threads.store(n = default_threads(), std::memory_order_relaxed);
  return n;
}

void set_num_threads(int n) {
  if (n < 1) throw std::invalid_argument("num_threads must be at least 1, got " + std::to_string(n));
  g_threads.store(n, std::memory_order_relaxed);
}

void parallel_for(int64_t tasks, FunctionRef<int64_t> fn) {
  const int threads = num_threads();
  if (tasks <= 1 || threads == 1 || t_inside) {
    for (int64_t i = 0; i < tasks; ++i) fn(i);
    return;
  }
  const Inside inside;
  pool().run(tasks, threads, [&fn](int64_t i) {
    t_inside = true;
    fn(i);
  });
}

int64_t run_begin(int64_t tasks, int64_t run) {
  const int64_t runs = std::max<int64_t>(1, std::min<int64_t>(num_threads(), tasks));
  return tasks * std::min(run, runs) / runs;
}

void parallel_runs(int64_t tasks, FunctionRef<const RunTask&> fn) {
  const int64_t runs = std::min<int64_t>(num_threads(), tasks);
  if (runs <= 1 || t_inside) {
    for (int64_t i = 0; i < tasks; ++i) fn({i, i + 1 < tasks ? i + 1 : -1, 0});
    return;
  }
  // What is left of a run: first task << 32 | end. Its own thread takes the first, others take the last.
  // Kept by the thread that asks: a kernel's second call allocates nothing.
  struct alignas(64) Left {
    std::atomic<uint64_t> range{0};
  };
  static thread_local std::unique_ptr<Left[]> kept;
  static thread_local int64_t room = 0;
  if (room < runs) {
    kept.reset(new Left[static_cast<size_t>(runs)]);
    room = runs;
  }
  Left* const left = kept.get();  // by this name for the workers, whose own is another
  for (int64_t r = 0; r < runs; ++r)
    left[r].range.store(
        static_cast<uint64_t>(run_begin(tasks, r)) << 32 | static_cast<uint64_t>(run_begin(tasks, r + 1)),
        std::memory_order_relaxed);
  parallel_for(runs, [&](int64_t own) {
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t run = (own + i) % runs;
      std::atomic<uint64_t>& range = left[run].range;
      for (uint64_t seen = range.load(std::memory_order_relaxed);;) {
        const int64_t begin = static_cast<int64_t>(seen >> 32),
                      end = static_cast<int64_t>(seen & 0xffffffffu);
        if (begin >= end) break;
        const bool front = i == 0;
        const uint64_t rest = front ? seen + (uint64_t{1} << 32) : seen - 1;
        if (!range.compare_exchange_weak(seen, rest, std::memory_order_relaxed)) continue;
        const int64_t task = front ? begin : end - 1;
        fn({task, end - begin > 1 ? (front ? begin + 1 : end - 2) : -1, run});
        seen = range.load(std::memory_order_relaxed);
      }
    }
  });
}

}  // namespace fastpower
