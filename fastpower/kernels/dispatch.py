"""Which backend runs an operator, and how operators are made known to torch.

Backends are packages of equal shape: operator ``op`` of backend ``b`` is the function ``op`` in the module
``fastpower.kernels.b.op``, looked up on first use. Nothing is imported for backends that are not used.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fastpower.errors import BackendUnavailable

BACKENDS = ("reference", "cpu", "triton", "cuda", "flash")  # flash has paged_attention only
_AUTO = {"cpu": "cpu", "cuda": "triton"}  # torch calls HIP devices "cuda" too


class Status(enum.IntFlag):
    """Per-row outcome of ``sample_tokens`` and ``score_tokens``, a bit set in an int32 tensor."""

    OK = 0
    NAN = 1  #: the row holds a NaN or +inf; its statistics are NaN and nothing is drawn from it
    MASKED = 2  #: every entry of the row is -inf; its statistics are NaN and nothing is drawn from it
    EXHAUSTED = 4  #: a draw of this row had nothing left after ``exclude``; that draw's token is -1


@cache
def why_not(backend: str) -> str | None:
    """None if ``backend`` can run in this process, else the reason and the remedy."""
    match backend:
        case "reference":
            return None
        case "cpu":
            try:
                importlib.import_module("fastpower._C")
            except ImportError as error:
                return f"the C++ extension cannot be imported ({error}); `pip install .` builds it"
            return None
        case "triton":
            if importlib.util.find_spec("triton") is None:
                return "triton is not installed; `pip install '.[triton]'` in fastpower's checkout"
            if torch.cuda.is_available() or _interpreted():
                return None
            return "torch sees no GPU (set TRITON_INTERPRET=1 before triton is imported to run it slowly on the CPU)"
        case "cuda" | "flash":
            reason: str | None = importlib.import_module(f"fastpower.kernels.{backend}").why_not()
            return reason
    raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def backends() -> dict[str, str | None]:
    """Every backend, with None if it is live or the reason why it is not."""
    return {backend: why_not(backend) for backend in BACKENDS}


def resolve(op: str, backend: str, device: torch.device) -> Callable[..., Any]:
    """The function that runs ``op`` on tensors of ``device``.

    Args:
        op: The operator's name.
        backend: A name in ``BACKENDS``, or "auto": FASTPOWER_BACKEND if set (read when first needed), else ``cpu`` for
            CPU tensors and ``triton`` for CUDA/HIP tensors.
        device: Where the tensors are.

    Raises:
        ValueError: An unknown name.
        BackendUnavailable: The backend cannot run here, cannot take tensors of that device, or lacks the operator; the
            message says why.
    """
    return _route(op, backend, device.type)[1]


def route(op: str, backend: str, tensor: torch.Tensor) -> tuple[str, Callable[..., Any]]:
    """The backend that a call on ``tensor`` means and its function; see ``resolve``.

    Every call of a façade asks, between two passes over gigabytes: what it touches is out of the caches by then. So
    no device object, no string is made for a tensor on the CPU, and the environment is not asked again.
    """
    return _route(op, backend, "cpu" if tensor.is_cpu else tensor.device.type)


@cache
def direct(backend: str) -> Any | None:
    """``fastpower._C`` if calls with this backend may hand it torch's tensors as they are, else None.

    Its ``direct_*`` functions check the arguments, make the outputs and run, in a fraction of the time that Python
    needs for the same. Whatever is not the plain good case they leave undone (None; False where there is no result),
    and the façade goes the long way. They read tensors through DLPack's C exchange API; a torch without it has the
    long way only.
    """
    if pick(backend, "cpu") != "cpu" or why_not("cpu") is not None:
        return None
    native = importlib.import_module("fastpower._C")
    return native if native.use_tensors_of(torch.Tensor) else None


def pick(backend: str, device: str) -> str:
    """The backend that a call means on a type of device: FASTPOWER_BACKEND, then the device's own, for ``auto``."""
    if backend == "auto":
        backend = os.environ.get("FASTPOWER_BACKEND") or backend
    return _AUTO.get(device, backend) if backend == "auto" else backend


@cache
def _route(op: str, backend: str, device: str) -> tuple[str, Callable[..., Any]]:
    backend = pick(backend, device)
    return backend, _find(op, backend, device)


def _find(op: str, backend: str, device: str) -> Callable[..., Any]:
    if backend == "auto":
        raise BackendUnavailable(f"{op}: no backend for {device} tensors; move them to the CPU or a GPU")
    reason = why_not(backend)
    if reason is not None:
        raise BackendUnavailable(f"{op}: backend {backend!r} is not available: {reason}")
    fits = {
        "reference": True,
        "cpu": device == "cpu",
        "triton": device == "cuda" or _interpreted(),
        "cuda": device == "cuda",
        "flash": device == "cuda",
    }
    if not fits[backend]:
        raise BackendUnavailable(f"{op}: backend {backend!r} cannot read {device} tensors; use backend='auto'")
    module = f"fastpower.kernels.{backend}.{op}"
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), op)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BackendUnavailable(f"backend {backend!r} has no {op}; use backend='auto'") from None
    return function


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


_library: Any = torch.library.Library("fastpower", "DEF")  # type: ignore[no-untyped-call]


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``torch.ops.fastpower.<op>`` and return it.

    In eager mode façades call the implementation themselves, which saves the dispatcher's overhead; under
    ``torch.compile`` they call the registered operator, which is one opaque node of the graph: see ``compiling``.

    Args:
        schema: A torch schema ("op(Tensor x, …) -> Tensor"; mutated arguments annotated ``Tensor(a!)``).
        implementation: Takes and returns exactly that.
        fake: Does the same on tensors without storage.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastpower::{name}", fake, lib=_library)
    return getattr(torch.ops.fastpower, name).default


compiling = torch.compiler.is_compiling
