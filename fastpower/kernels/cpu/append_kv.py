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
        key=key.data_ptr(),
        value=value.data_ptr(),
        key_token_stride=key.stride(0) * size,
        key_head_stride=key.stride(1) * size,
        value_token_stride=value.stride(0) * size,
        value_head_stride=value.stride(1) * size,
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        k_page_stride=k_cache.stride(0) * size,
        v_page_stride=v_cache.stride(0) * size,
        num_pages=num_pages,
        page_size=page_size,
        heads=heads,
        head_bytes=dim * size,
        slots=slots.data_ptr(),
        tokens=slots.shape[0],
    )
