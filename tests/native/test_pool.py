"""The thread pool: a task that fails is the caller's error, and the pool works on."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import pytest

from fastpower import _C


@pytest.fixture
def threads():
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("failing", [1, 3, 50])
def test_a_task_that_fails_is_raised_where_it_was_asked_for_and_the_pool_works_on(threads, count, failing):
    threads(count)
    for _ in range(20):
        with pytest.raises(MemoryError):
            _C.run_tasks(100, failing)
        assert _C.run_tasks(100) == 100


def test_callers_in_many_threads_get_each_their_own_outcome(threads):
    threads(3)
    wrong = []

    def call(failing):
        for _ in range(50):
            try:
                if _C.run_tasks(40, failing) != 40 or failing:
                    wrong.append("an error was swallowed")
            except MemoryError:
                if not failing:
                    wrong.append("another caller's error")

    callers = [threading.Thread(target=call, args=(failing,)) for failing in (0, 5, 0, 7, 0, 1)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_child_has_a_pool_of_its_own(threads):
    threads(3)
    assert _C.run_tasks(100) == 100
    child = os.fork()
    if child == 0:
        os._exit(0 if _C.run_tasks(100) == 100 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_where_the_system_gives_no_more_threads_fewer_do_the_work():
    """And the same Python thread gets them later: it is not serial for ever."""
    program = (
        "import resource\n"
        "from fastpower import _C\n"
        "_C.set_num_threads(8)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 4096))\n"
        "import os; os.setuid(65534)\n"
        "assert _C.run_tasks(100) == 100\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096))\n"
        "assert _C.run_tasks(100) == 100\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    if os.geteuid() != 0 or resource.getrlimit(resource.RLIMIT_NPROC)[1] < 4096:
        pytest.skip("needs root, to become somebody with no threads left")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
