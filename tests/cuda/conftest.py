"""csrc/cuda without a GPU: its sources compiled with a host compiler against emulator.h, behind the backend's own
launchers, on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastpower.kernels.cuda import library

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).with_name("emulator.h")


def emulate(sources: list[Path], target: Path) -> Path:
    """A shared library of CUDA sources that runs on the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command = [compiler, *flags, "-Wno-clobbered", "-x", "c++", "-include", str(EMULATOR), *map(str, sources)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory):
    return emulate(sorted((ROOT / "csrc/cuda").glob("*.cu")), tmp_path_factory.mktemp("cuda") / "emulated.so")


@pytest.fixture
def emulated(emulated_library, monkeypatch):
    """The CUDA backend on the emulator; every uninitialised output and scratch buffer is poisoned (NaN, or the largest
    integer). Returns a function that sets the order in which threads run: 0 ascending, 1 descending, else shuffled."""
    monkeypatch.setattr(library, "PATH", emulated_library)
    monkeypatch.setattr(library, "stream", lambda device: 0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # torch then fills what torch.empty returns
    order = ctypes.c_uint.in_dll(library.load(), "emulator_order")
    yield lambda value: setattr(order, "value", value)
    order.value = 0
    torch.use_deterministic_algorithms(before)
