"""What operators over pages ask of K/V caches: (…, pages, page_size, Hkv, D), pages contiguous."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastpower.kernels.addresses import extent


def check_pages(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    """Refuse pages that are not contiguous, or hold no token.

    Raises:
        ValueError: They are such.
    """
    sizes = page_size, heads, dim = k_cache.shape[-3:]
    dense = (heads * dim, dim, 1)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if page_size and cache.is_contiguous():
            continue
        strides = cache.stride()[-3:]
        if page_size == 0 or any(n > 1 and have != want for n, have, want in zip(sizes, strides, dense, strict=True)):
            raise ValueError(
                f"{op}: {name} needs contiguous pages (page_size, Hkv, D) of at least one token, "
                f"got shape {tuple(cache.shape)} and strides {cache.stride()}"
            )


def overlaps(cache: Tensor) -> bool:
    """Whether pages (or layers of pages) share memory, as those of an expanded tensor do."""
    *outer, page, heads, dim = cache.shape
    inner = page * heads * dim
    for size, stride in sorted(zip(outer, cache.stride()[: len(outer)], strict=True), key=lambda pair: abs(pair[1])):
        if size > 1 and abs(stride) < inner:
            return True
        inner = max(inner, abs(stride) * (size - 1) + inner)
    return False


def check_written(op: str, written: dict[str, Tensor], read: dict[str, Tensor]) -> None:
    """Refuse a tensor that is written and shares memory within itself, with another one, or with one that is read.

    Args:
        op: The operator, for the message.
        written: Caches by the names of their arguments.
        read: The other arguments by name.

    Raises:
        ValueError: One does.
    """
    for name, cache in written.items():
        if not cache.is_contiguous() and overlaps(cache):
            raise ValueError(
                f"{op}: pages of {name} share memory (shape {tuple(cache.shape)}, strides {cache.stride()}), so that "
                "writing one would change others; use clone() of an expanded tensor"
            )
    names = list(written)
    for i, name in enumerate(names):
        for other, tensor in [*((other, written[other]) for other in names[:i]), *read.items()]:
            if meet(written[name], tensor):
                raise ValueError(
                    f"{op}: {name} and {other} share memory, so that writing {name} would change {other}; "
                    f"use {other}.clone()"
                )


def meet(a: Tensor, b: Tensor) -> bool:
    """Whether some byte belongs to both. Tensors that only stand for one (fake, functional) meet nothing."""
    (a_begin, a_end), (b_begin, b_end) = extent(a), extent(b)
    if max(a_begin, b_begin) >= min(a_end, b_end):
        return False
    a_runs, a_size = _runs(a, a_begin)
    b_runs, b_size = _runs(b, b_begin)
    # The last run of b that begins before a run of a ends; runs are sorted and of one length, so none ends later.
    before = np.searchsorted(b_runs, a_runs + a_size) - 1
    return bool((b_runs[before.clip(0)] + b_size > a_runs)[before >= 0].any())


def _runs(tensor: Tensor, begin: int) -> tuple[NDArray[np.int64], int]:
    """Where the contiguous pieces of a tensor begin, sorted, and the bytes of each."""
    dims = sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and s)
    run = 1
    while dims and dims[0][0] == run:
        run *= dims.pop(0)[1]
    starts = np.zeros(1, np.int64)
    for stride, n in dims:
        starts = (starts[:, None] + np.arange(n) * stride).reshape(-1)
    size = tensor.element_size()
    return begin + np.sort(starts) * size, run * size
