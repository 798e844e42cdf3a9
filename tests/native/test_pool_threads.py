"""The pool under ThreadSanitizer: a program of its own, for Python cannot load a library that is built with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("pool_threads.cpp")


def built(folder: Path, *flags: str) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "pool_threads"
    sources = [PROGRAM, ROOT / "csrc/cpu/parallel.cpp", ROOT / "csrc/cpu/paged_copy.cpp"]
    flags = ("-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc'}", *flags)
    made = subprocess.run([compiler, *flags, *sources, "-o", program], capture_output=True, text=True, env=plain())
    if "cannot find" in made.stderr and "tsan" in made.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert made.returncode == 0, made.stderr
    return program


def run(program: Path) -> subprocess.CompletedProcess[str]:
    # without a randomised address space: ThreadSanitizer wants certain ranges free
    fixed = [shutil.which("setarch"), "-R"] if shutil.which("setarch") else []
    result = subprocess.run(
        [*fixed, program], capture_output=True, text=True, env=plain() | {"TSAN_OPTIONS": "exitcode=66"}
    )
    if "unexpected memory mapping" in result.stderr or "personality" in result.stderr:
        pytest.skip("this kernel's address space is not one that ThreadSanitizer can run in")
    return result


def plain() -> dict[str, str]:
    """The environment without the other sanitizers' libraries, which ``make sanitize`` preloads."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}


def test_tasks_that_throw_leave_no_race_behind(tmp_path):
    result = run(built(tmp_path))
    assert result.returncode == 0 and result.stdout == "races: none\n", result.stderr[-6000:]


def test_a_race_would_be_found(tmp_path):
    result = run(built(tmp_path, "-DWITH_A_RACE"))
    assert result.returncode == 66 and "data race" in result.stderr
