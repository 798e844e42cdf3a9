"""Launcher of csrc/cuda/paged_copy.cu: keys and values of new tokens to their slots."""

from __future__ import annotations

from torch import Tensor

from fastpower.kernels.cuda import library


def append_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """In place; the contract is the façade's docstring. Slots outside the cache (-1: padding) write nothing."""
    size = key.element_size()
    key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    library.call(
        "fastpower_append_kv",
        key.device,
        key,
        value,
        k_cache,
        v_cache,
        slots.contiguous(),
        *key.shape[:2],
        key.shape[2] * size,
        *(stride * size for x in (key, value) for stride in x.stride()[:2]),
        *k_cache.shape[:2],
        k_cache.stride(0) * size,
        v_cache.stride(0) * size,
    )
