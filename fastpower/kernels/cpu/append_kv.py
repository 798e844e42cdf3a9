from __future__ import annotations

import torch

from fastpower import _C


def append_kv(
    key: torch.Tensor, value: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    key, value, slots = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value, slots))
    num_pages, page_size, heads, dim = k_cache.shape
    size = key.element_size()
    _C.append_kv(
        key.data_ptr(),
        value.data_ptr(),
        key.stride(0) * size,
        key.stride(1) * size,
        value.stride(0) * size,
        value.stride(1) * size,
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
