"""Backend choice, and what is said when a backend cannot be had."""

import pytest
import torch

from fastpower.errors import BackendUnavailable
from fastpower.kernels import BACKENDS, Status, backends, dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    """Nothing in the environment, nothing remembered of it, before and after."""
    monkeypatch.delenv("FASTPOWER_BACKEND", raising=False)
    forget()
    yield
    forget()


def forget():
    dispatch._route.cache_clear()
    dispatch.direct.cache_clear()


def test_every_backend_is_live_or_says_why_not():
    report = backends()
    assert tuple(report) == BACKENDS
    assert report["reference"] is None
    assert all(reason is None or len(reason) > 20 for reason in report.values())


@pytest.mark.parametrize("name", ["", "gpu", "CPU"])
def test_unknown_backend_is_named(name):
    with pytest.raises(ValueError, match=f"got {name!r}"):
        dispatch.resolve("sample_tokens", name, CPU)


def test_cpu_backend_refuses_gpu_tensors():
    with pytest.raises(BackendUnavailable, match="'cpu' cannot read cuda tensors"):
        dispatch.resolve("sample_tokens", "cpu", CUDA)


def test_auto_refuses_a_device_without_backend():
    with pytest.raises(BackendUnavailable, match="no backend for meta tensors"):
        dispatch.resolve("sample_tokens", "auto", torch.device("meta"))


def test_missing_operator_is_named():
    with pytest.raises(BackendUnavailable, match="'reference' has no no_such_op"):
        dispatch.resolve("no_such_op", "reference", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backend_without_gpu_says_what_is_missing(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch.why_not.cache_clear()
    with pytest.raises(BackendUnavailable, match=f"backend '{backend}' is not available: "):
        dispatch.resolve("sample_tokens", backend, CPU)


def test_status_bits_are_those_of_the_kernels():
    assert [int(bit) for bit in (Status.OK, Status.NAN, Status.MASKED, Status.EXHAUSTED)] == [0, 1, 2, 4]


def test_auto_is_cpu_for_cpu_tensors():
    assert dispatch.resolve("sample_tokens", "auto", CPU) is dispatch.resolve("sample_tokens", "cpu", CPU)


def test_the_environment_overrides_auto_only(monkeypatch):
    reference, cpu = (dispatch.resolve("sample_tokens", name, CPU) for name in ("reference", "cpu"))
    forget()
    monkeypatch.setenv("FASTPOWER_BACKEND", "reference")
    assert dispatch.direct("auto") is None
    assert dispatch.resolve("sample_tokens", "auto", CPU) is reference
    assert dispatch.resolve("sample_tokens", "cpu", CPU) is cpu
