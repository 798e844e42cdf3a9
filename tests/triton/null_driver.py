"""A driver without a device, so that everything before a launch runs as it does on one: arguments are bound and
specialised by their values. Imported by the programs that tests start in processes of their own."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]


class NoDevice:
    """What JITFunction.run asks of a driver before it launches."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def activate():
    """From now on triton launches on no device."""
    driver.set_active(NoDevice())


def on_launch(function):
    """``function(kernel, run, args, options)`` in place of every launch; ``run(warmup=True)`` compiles it."""
    run = triton.JITFunction.run

    def launch(self, *args, grid, warmup, **options):
        return function(self, lambda: run(self, *args, grid=grid, warmup=True, **options), args, options)

    triton.JITFunction.run = launch


def variant(kernel, args, options):
    """What triton compiles a kernel for: types, divisibilities and constants of this call's arguments."""
    binder = kernel.device_caches[0][-1]
    _, specialization, rest = binder(*args, debug=False, **options)
    return str(specialization), str(rest)


@contextmanager
def launches_to(function):
    """``on_launch`` for as long as this lasts."""
    before = triton.JITFunction.run
    on_launch(function)
    try:
        yield
    finally:
        triton.JITFunction.run = before
