"""Triton without a GPU: the kernels interpreted."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_kernels_pass_under_the_interpreter():
    """tests/triton, in a process in which triton was imported with its interpreter on."""
    command = [sys.executable, "-m", "pytest", "tests/triton", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=590
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 40
    assert "skipped" not in run.stdout
