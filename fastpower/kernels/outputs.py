"""Outputs and working memory that a caller brings, for engines that allocate once and then only call.

``out=`` names the tensors that an operator writes, ``workspace=`` the bytes that it works in; ``*_workspace`` say how
many a backend needs. The CPU's kernels need none: each calling thread keeps what its largest call took.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from torch import Tensor

from fastpower.kernels.addresses import extent
from fastpower.kernels.caches import meet
from fastpower.kernels.dispatch import pick

#: backends whose functions take ``out`` and ``workspace``; what others return is copied
WRITING = ("cpu", "triton", "cuda")
_ALIGNMENT = 16  #: bytes, what the widest loads of the device kernels want


def sample_tokens_workspace(logits: Tensor, exponents: Tensor, *, backend: str = "auto") -> int:
    """Bytes of ``workspace`` that ``sample_tokens`` needs so as to allocate nothing.

    Args:
        logits: (B, V); only its shape and device count, so one of the largest batch serves all.
        exponents: (E,); only its shape counts.
        backend: That of the call.

    Returns:
        Bytes, 0 for the backends ``cpu`` and ``reference``.
    """
    return _bytes("sample_tokens", backend, logits, exponents)


def paged_attention_workspace(
    query: Tensor, k_cache: Tensor, page_table: Tensor, lengths: Tensor, *, groups: int = 0, backend: str = "auto"
) -> int:
    """Bytes of ``workspace`` that ``paged_attention`` needs so as to allocate nothing.

    Args:
        query: (N, Hq, D); of this and of the others only shapes, dtype and device count.
        k_cache: (num_pages, page_size, Hkv, D).
        page_table: (S, max_pages).
        lengths: (S,).
        groups: Of sequences in ``shared``.
        backend: That of the call.

    Returns:
        Bytes, 0 for the backends ``cpu``, ``reference`` and ``flash``.
    """
    return _bytes("paged_attention", backend, query, k_cache, page_table, lengths, groups)


def _bytes(op: str, backend: str, first: Tensor, *others: Any) -> int:
    name = pick(backend, first.device.type)
    if name not in ("triton", "cuda"):
        return 0
    needed: int = importlib.import_module(f"fastpower.kernels.{name}.{op}").workspace(first, *others)
    return needed


def run_into(backend: str, run: Any, arguments: Sequence[Any], options: Mapping[str, Any], out: Any, room: Any) -> None:
    """``run`` an operator so that its results are in ``out``, a tensor or a tuple of them."""
    if backend in WRITING:
        run(*arguments, **options, out=out, workspace=room)
        return
    results = run(*arguments, **options)
    for target, result in zip(*((x,) if isinstance(x, Tensor) else x for x in (out, results)), strict=True):
        target.copy_(result)


def check_outputs(op: str, outputs: Mapping[str, Tensor], room: Tensor | None, inputs: Iterable[Any]) -> None:
    """Refuse outputs that cannot all be written: contiguous, no leaf of autograd, sharing memory with nothing.

    Raises:
        ValueError: One cannot; it is named.
    """
    written = dict(outputs) if room is None else {**outputs, "workspace": room}
    for name, tensor in written.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous to be written, got strides {tensor.stride()}")
        if tensor.requires_grad:
            raise ValueError(f"{op}: {name} requires grad and cannot be written; use {name}.detach()")
    if room is not None and (begin := extent(room)[0]) % _ALIGNMENT:
        raise ValueError(f"{op}: workspace must begin at a multiple of {_ALIGNMENT} bytes, got {begin:#x}")
    for (name, tensor), (other, also) in combinations(written.items(), 2):
        if meet(tensor, also):
            raise ValueError(f"{op}: {name} and {other} share memory; give each its own")
    for tensor in inputs:
        for name, target in written.items():
            if isinstance(tensor, Tensor) and meet(target, tensor):
                raise ValueError(f"{op}: {name} shares memory with an argument of shape {tuple(tensor.shape)}")
