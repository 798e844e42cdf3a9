"""What launchers do before a launch, without a device and without the interpreter."""

import ast
import importlib.util
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.triton.test_ahead_of_time import environment

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "kernels" / "triton").glob("*.py"))
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def launchers(path):
    """Functions of a file that launch a kernel: ``name_kernel[grid](…)``."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and getattr(node.func.value, "id", "").endswith("_kernel")
            for node in ast.walk(function)
        ):
            yield function


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_launcher_makes_the_device_of_its_tensors_current(path):
    bare = [
        function.name
        for function in launchers(path)
        if "on_its_device" not in [getattr(decorator, "id", "") for decorator in function.decorator_list]
    ]
    assert not bare, f"{path.name}: {bare} would launch on the current device, wherever their tensors are"


def test_the_lint_sees_launchers():
    assert sum(len(list(launchers(path))) for path in FILES) >= 9


def test_the_device_is_that_of_the_first_tensor_and_is_given_back(monkeypatch):
    from fastpower.kernels.triton.device import on_its_device

    current = ["before"]

    @contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x = torch.zeros(1)
    assert on_its_device(lambda first: current[-1])(x) is x
    assert on_its_device(lambda first, **more: current[-1])((x, torch.ones(1)), scale=2) is x
    with pytest.raises(ZeroDivisionError):
        on_its_device(lambda first: 1 // 0)(x)


def test_a_long_run_compiles_few_variants_and_none_late():
    command = [sys.executable, "-W", "ignore", "tests/triton/variants.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads(run.stdout)
    assert sum(report["run"].values()) <= 12, report
    assert not any(report["late"].values()), report
