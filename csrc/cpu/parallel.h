// A small thread pool of our own. Torch's thread settings are never touched.
//
// Workers spin for a moment after a job (a decode step issues hundreds of jobs in a row) and then sleep, so
// that an idle pool costs nothing and does not fight torch's OpenMP team for the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace fastpower {

// Number of threads used by kernels: set_num_threads(), else FASTPOWER_NUM_THREADS, else the cores this
// process may use.
int num_threads();
void set_num_threads(int n);  // throws std::invalid_argument when n < 1

// Runs fn(task) for every task in [0, tasks) on up to num_threads() threads and returns when all are done.
// Which thread runs a task is unspecified, so a result may depend on the task index only, never on the
// thread. fn must not throw. Calls from several threads take turns; a nested call runs inline.
void parallel_for(int64_t tasks, const std::function<void(int64_t)>& fn);

}  // namespace fastpower
