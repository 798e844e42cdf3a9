"""Fixtures of the kernel tests."""

import pytest
import torch

from tests.kernels.backends_live import ways

WAYS = ways()


@pytest.fixture
def poison():
    """torch.empty returns NaN (floats) and the largest value (integers), so that an output left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=WAYS, ids=str)
def way(request, poison):
    """Every backend that is live here, the C++ kernels on every instruction set; outputs are poisoned."""
    with request.param.active() as active:
        yield active


@pytest.fixture(params=[way for way in WAYS if way.backend != "reference"], ids=str)
def fast(request, poison):
    """Like ``way`` without the reference."""
    with request.param.active() as active:
        yield active
