"""What C++ is given was allocated with a dtype and a device: the defaults of torch belong to the user."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "fastpower").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
#: functions of torch whose result depends on torch.set_default_dtype or torch.set_default_device
MAKERS = {
    *("empty", "zeros", "ones", "full", "tensor", "as_tensor", "scalar_tensor", "eye", "arange", "range", "linspace"),
    *("logspace", "rand", "randn", "randint", "randperm", "empty_strided", "complex", "hann_window", "normal"),
}


def faults(source: str) -> list[str]:
    """Calls that allocate with a default, and addresses that are taken without saying what lies there."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        name, owner = call.func.attr, call.func.value
        given = {keyword.arg for keyword in call.keywords}
        spread = None in given  # **options: they are looked at where they are made
        if isinstance(owner, ast.Name) and owner.id == "torch" and name in MAKERS:
            missing = set() if spread else {"dtype", "device"} - given
            found += [f"line {call.lineno}: torch.{name} without {', '.join(sorted(missing))}"] if missing else []
        if name == "data_ptr":
            found.append(f"line {call.lineno}: data_ptr() instead of fastpower.kernels.addresses.address")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_allocation_states_dtype_and_device(path):
    source = path.read_text()
    # The one door; what compares or aligns addresses without reading there; device pointers, for ctypes or Triton.
    elsewhere = {"addresses.py", "packed_linear.py", "weights.py"}
    where = path.relative_to(ROOT).as_posix()
    allowed = path.name in elsewhere or where.startswith(("fastpower/kernels/cuda", "kernels/triton"))
    assert [fault for fault in faults(source) if not (allowed and "data_ptr" in fault)] == []


@pytest.mark.parametrize(
    "line, said",
    [
        ("torch.empty(3)", "device, dtype"),
        ("torch.zeros(3, dtype=torch.int64)", "device"),
        ("torch.tensor([1], device='cpu')", "dtype"),
        ("x = f(x.data_ptr())", "data_ptr"),
    ],
)
def test_the_rule_sees_what_it_forbids(line, said):
    [fault] = faults(line)
    assert said in fault


def test_the_rule_lets_stated_allocations_pass():
    assert faults("torch.empty(3, dtype=d, device='cpu'); torch.zeros(3, **like); torch.empty_like(x)") == []
