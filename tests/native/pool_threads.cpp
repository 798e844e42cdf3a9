// The pool, the kernels that run on it and tasks that throw, from several threads at once, for ThreadSanitizer.
// Built and run by tests/native/test_pool_threads.py; prints "races: none" and exits with 0 if all went well.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/paged_copy.h"
#include "cpu/parallel.h"

using namespace fastpower;

namespace {

std::atomic<int> wrong{0};

void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  wrong.fetch_add(1);
}

// Writes of tasks must be seen by the caller without another word, also where some task threw.
void tasks_that_write(int round) {
  std::vector<int64_t> out(97, -1);
  parallel_for(97, [&](int64_t i) { out[i] = i * round; });
  for (int64_t i = 0; i < 97; ++i) expect(out[i] == i * round, "a task's write");
}

void tasks_that_throw(int round) {
  std::vector<int> seen(64, 0);
  bool caught = false;
  try {
    parallel_for(64, [&](int64_t i) {
      seen[i] = 1;
      if (i % 7 == round % 7) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    caught = true;
  }
  expect(caught, "an error that was swallowed");
  seen.assign(64, 2);  // a worker that still writes is a race
}

void runs_that_write_and_throw(int round) {
  std::vector<int64_t> out(50, 0);
  parallel_runs(50, [&](const RunTask& t) { out[t.task] += t.task + 1; });
  expect(std::accumulate(out.begin(), out.end(), int64_t{0}) == 50 * 51 / 2, "a run that missed tasks");
  bool caught = false;
  try {
    parallel_runs(50, [&](const RunTask& t) {
      if (t.task == round % 50) throw std::runtime_error("no");
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "a run's error that was swallowed");
}

void nested(int) {
  std::atomic<int> done{0};
  parallel_for(5, [&](int64_t) { parallel_for(5, [&](int64_t) { done.fetch_add(1); }); });
  expect(done == 25, "nested tasks");
}

void kernel(int round) {  // large enough for several threads
  constexpr int64_t kTokens = 96, kBytes = 4096;
  std::vector<char> key(kTokens * kBytes, static_cast<char>(round)), cache(kTokens * kBytes), other(cache);
  std::vector<int64_t> slots(kTokens);
  std::iota(slots.rbegin(), slots.rend(), 0);
  append_kv({key.data(), key.data(), kBytes, kBytes, kBytes, kBytes, cache.data(), other.data(), kBytes * 16,
             kBytes * 16, kTokens / 16, 16, 1, kBytes, slots.data(), kTokens});
  expect(std::memcmp(cache.data(), key.data(), cache.size()) == 0, "append_kv");
  slots[1] = slots[0];
  bool caught = false;
  try {
    append_kv({key.data(), key.data(), kBytes, kBytes, kBytes, kBytes, cache.data(), other.data(), kBytes * 16,
               kBytes * 16, kTokens / 16, 16, 1, kBytes, slots.data(), kTokens});
  } catch (const std::invalid_argument&) {
    caught = true;
  }
  expect(caught, "a slot given twice");
}

}  // namespace

int main() {
#ifdef WITH_A_RACE  // the control: this must be found
  int64_t sum = 0;
  set_num_threads(4);
  for (int round = 0; round < 200; ++round) parallel_for(400, [&](int64_t i) { sum += i; });
  std::printf("sum %lld\n", static_cast<long long>(sum));
  return 0;
#endif
  set_num_threads(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([caller] {
      for (int round = 0; round < 60; ++round) {
        tasks_that_write(round);
        tasks_that_throw(round + caller);
        runs_that_write_and_throw(round + caller);
        nested(round);
        kernel(round);
      }
    });
  for (int round = 0; round < 40; ++round) {  // the number of threads changes while others are at work
    set_num_threads(1 + round % 5);
    tasks_that_write(round);
  }
  for (std::thread& caller : callers) caller.join();
  if (wrong) return 1;
  std::puts("races: none");
  return 0;
}
