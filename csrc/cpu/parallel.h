// A small thread pool of our own. Torch's thread settings are never touched.
//
// Workers spin for a moment after a job (a decode step issues hundreds of jobs in a row) and then sleep, so
// that an idle pool costs nothing and does not fight torch's OpenMP team for the cores.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastpower {

// A function that lives as long as the call it is passed to. Unlike std::function it never allocates: what
// a kernel captures does not fit into that one's small buffer.
template <class Argument>
class FunctionRef {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, FunctionRef>>>
  FunctionRef(const F& f)
      : object_(std::addressof(f)),
        call_([](const void* object, Argument x) { (*static_cast<const F*>(object))(x); }) {}
  void operator()(Argument x) const { call_(object_, x); }

 private:
  const void* object_;
  void (*call_)(const void*, Argument);
};

// Number of threads used by kernels: set_num_threads(), else FASTPOWER_NUM_THREADS, else the cores this
// process may use.
int num_threads();
void set_num_threads(int n);  // throws std::invalid_argument when n < 1

// Runs fn(task) for every task in [0, tasks) on up to num_threads() threads and returns when all are done.
// Which thread runs a task is unspecified, so a result may depend on the task index only, never on the
// thread. fn must not throw. Calls from several threads take turns; a nested call runs inline.
void parallel_for(int64_t tasks, FunctionRef<int64_t> fn);

// A task, the one that the same thread will run after it (-1: unknown), which is what it should fetch ahead,
// and the number of the thread's run.
struct RunTask {
  int64_t task, next, run;
};

// parallel_for for work that streams through memory: thread r begins with the run_begin(tasks, r) … of
// consecutive tasks, in order, and when it is done takes tasks from the ends of the other runs.
void parallel_runs(int64_t tasks, FunctionRef<const RunTask&> fn);
int64_t run_begin(int64_t tasks, int64_t run);  // first task of a run with the present number of threads

}  // namespace fastpower
