"""Facts about the machine and its measured memory bandwidth: what throughputs are held against."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastpower import _C


def set_threads(threads: int | None) -> None:
    """Threads of torch and of our kernels; None leaves both alone.

    Raises:
        ValueError: Fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    import torch

    torch.set_num_threads(threads)
    _C.set_num_threads(threads)


def seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time of ``call`` after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read(array: NDArray[np.float64]) -> int:
    """Read a contiguous array once on all kernel threads; what comes back only keeps the reads from being skipped."""
    return int(_C.read_memory(array.ctypes.data, array.nbytes))


def copy(target: NDArray[np.float64], source: NDArray[np.float64]) -> None:
    """memcpy of contiguous arrays on all kernel threads."""
    _C.copy_memory(target.ctypes.data, source.ctypes.data, source.nbytes)


@cache
def read_bandwidth(megabytes: int = 512) -> float:
    """GB/s of one pass over ``megabytes``, on the kernels' threads."""
    data = np.ones(megabytes << 17)
    return data.nbytes / seconds(lambda: read(data)) / 1e9


@cache
def copy_bandwidth(megabytes: int = 256) -> float:
    """GB/s of copying ``megabytes``, counting both ways."""
    source = np.ones(megabytes << 17)
    target = np.zeros_like(source)
    return 2 * source.nbytes / seconds(lambda: copy(target, source)) / 1e9


@cache
def device_bandwidth(device: str, megabytes: int = 512) -> float:
    """GB/s at which ``device`` reads: with the kernels' threads on the CPU; elsewhere what torch's copy moves."""
    if device == "cpu":
        return read_bandwidth()
    import torch

    source = torch.ones(megabytes << 18, device=device, dtype=torch.float32)
    target = torch.empty_like(source)

    def call() -> None:
        target.copy_(source)
        torch.accelerator.synchronize()

    return 2 * source.nbytes / seconds(call) / 1e9


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def facts(bandwidth: bool = True) -> dict[str, object]:
    """For ``benchmark.extra_info``: machine, instruction set, threads, load, bandwidths."""
    result: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": _C.isa(),
        "threads": _C.num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
    if bandwidth:
        result["read_gb_s"] = round(read_bandwidth(), 2)
        result["copy_gb_s"] = round(copy_bandwidth(), 2)
    return result
