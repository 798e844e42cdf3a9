from __future__ import annotations

import torch

from fastpower import _C


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
    size = key.element_size()
    _C.append_kv(
        key.data_ptr(),
        value.data_ptr(),
        key_row * size,
        key_head * size,
        value_row * size,
        value_head * size,
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        k_cache.stride(0) * size,
        v_cache.stride(0) * size,
        num_pages,
        page_size,
        heads,
        dim * size,
        slots.data_ptr(),
        slots.shape[0],
    )
