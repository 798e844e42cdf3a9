from __future__ import annotations

import torch

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.arguments import FLOATS


def append_kv(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    if key.stride(2) != 1:
        key = key.contiguous()
    if value.stride(2) != 1:
        value = value.contiguous()
    slots = slots.contiguous()
    num_pages, page_size, heads, dim = k_cache.shape
    key_row, key_head, _ = key.stride()
    value_row, value_head, _ = value.stride()
    dtype, size = key.dtype, key.element_size()
    _C.append_kv(
        address(key, *FLOATS),
        address(value, dtype),
        key_row * size,
        key_head * size,
        value_row * size,
        value_head * size,
        address(k_cache, dtype),
        address(v_cache, dtype),
        k_cache.stride(0) * size,
        v_cache.stride(0) * size,
        num_pages,
        page_size,
        heads,
        dim * size,
        address(slots, torch.int64),
        slots.shape[0],
    )
