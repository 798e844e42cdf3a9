"""What operators over pages ask of K/V caches: (…, pages, page_size, Hkv, D), pages contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower.kernels.arguments import check_tensor


def caches_fit(k_cache: Tensor, v_cache: Tensor, dtype: torch.dtype) -> bool:
    _, page_size, heads, dim = k_cache.shape
    strides = (heads * dim, dim, 1)
    return (
        k_cache.dtype is dtype
        and v_cache.dtype is dtype
        and k_cache.shape == v_cache.shape
        and page_size > 0
        and k_cache.stride()[1:] == strides
        and v_cache.stride()[1:] == strides
    )


def check_caches(
    op: str,
    k_cache: Tensor,
    v_cache: Tensor,
    shape: tuple[int | str, ...] | torch.Size,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raises TypeError or ValueError, naming what does not fit."""
    check_tensor(op, "k_cache", k_cache, (dtype,), shape, device)
    check_tensor(op, "v_cache", v_cache, (dtype,), k_cache.shape, device)
    sizes = page_size, heads, dim = k_cache.shape[-3:]
    dense = (heads * dim, dim, 1)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
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


def check_written(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    """Raises ValueError for caches that cannot be written because their pages share memory."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if overlaps(cache):
            raise ValueError(
                f"{op}: pages of {name} share memory (shape {tuple(cache.shape)}, strides {cache.stride()}), so that "
                "writing one would change others; use clone() of an expanded tensor"
            )
