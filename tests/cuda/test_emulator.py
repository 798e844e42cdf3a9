"""The emulator that the other tests of this directory rest on finds what it promises to find."""

import ctypes

import pytest

from tests.cuda.conftest import ROOT, emulate

SOURCE = """
#include "{root}/csrc/cuda/launch.h"
// Sums x[0..63] through shared memory; barrier 0: none, 1: right, 2: reached by half of the threads only.
__global__ void total(const float* x, float* y, int barrier) {{
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  if (barrier == 1 || (barrier == 2 && threadIdx.x < 32)) __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < 64; ++i) sum += held[i];
  y[threadIdx.x] = sum;
}}
FASTPOWER_API int run(const float* x, float* y, int barrier) {{
  return fastpower::launch(total, 1, 64, nullptr, x, y, barrier);
}}
// Where a launch for ``device`` runs; calls that changed the device until it was put back.
FASTPOWER_API int guarded(int device, int* inside, int* after) {{
  const int before = emulator::device_changes;
  {{
    fastpower::DeviceGuard guard(device);
    *inside = emulator::current_device;
    if (guard.error() != cudaSuccess) *inside = -1;
  }}
  *after = emulator::current_device;
  return emulator::device_changes - before;
}}
"""


@pytest.fixture(scope="module")
def total(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "total.cu").write_text(SOURCE.format(root=ROOT))
    library = ctypes.CDLL(str(emulate([folder / "total.cu"], folder / "total.so")))
    order = ctypes.c_uint.in_dll(library, "emulator_order")

    def run(barrier, threads_in_order, first):
        order.value = threads_in_order
        x, y = (ctypes.c_float * 64)(*range(first, first + 64)), (ctypes.c_float * 64)()
        error = library.run(x, y, barrier)
        return error, list(y)

    run.library = library
    return run


@pytest.mark.parametrize("device, inside, changes", [(0, 0, 0), (1, 1, 2), (-1, -1, 0)])
def test_launches_are_on_the_tensors_device_and_only_a_change_is_undone(total, device, inside, changes):
    places = (ctypes.c_int * 2)()
    size = ctypes.sizeof(ctypes.c_int)
    assert total.library.guarded(device, places, ctypes.byref(places, size)) == changes
    assert list(places) == [inside, 0]


@pytest.mark.parametrize("order", [0, 1, 5])
def test_barrier_gives_every_thread_the_sum_in_any_order(total, order):
    assert total(1, order, 7) == (0, [sum(range(7, 71))] * 64)


@pytest.mark.parametrize("order, right", [(0, 63), (1, 0)])
def test_without_the_barrier_only_the_thread_that_runs_last_has_the_sum(total, order, right):
    total(1, order, 0)  # something else in shared memory
    _, sums = total(0, order, 7)
    assert [i for i in range(64) if sums[i] == sum(range(7, 71))] == [right]


def test_barrier_that_half_of_the_threads_skip_fails_the_launch(total):
    assert total(2, 0, 7)[0] == 719
