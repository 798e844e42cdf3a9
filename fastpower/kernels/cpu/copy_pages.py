from __future__ import annotations

import torch

from fastpower import _C


def copy_pages(
    k_cache: torch.Tensor, v_cache: torch.Tensor, source: torch.Tensor, target: torch.Tensor, tokens: torch.Tensor
) -> None:
    source, target, tokens = (x.contiguous() for x in (source, target, tokens))
    layers, num_pages, page_size, heads, dim = k_cache.shape
    size = k_cache.element_size()
    _C.copy_pages(
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        k_layer_stride=k_cache.stride(0) * size,
        k_page_stride=k_cache.stride(1) * size,
        v_layer_stride=v_cache.stride(0) * size,
        v_page_stride=v_cache.stride(1) * size,
        layers=layers,
        num_pages=num_pages,
        page_size=page_size,
        token_bytes=heads * dim * size,
        source=source.data_ptr(),
        target=target.data_ptr(),
        tokens=tokens.data_ptr(),
        copies=source.shape[0],
    )
