from __future__ import annotations

import torch

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.arguments import FLOATS


def copy_pages(
    k_cache: torch.Tensor, v_cache: torch.Tensor, source: torch.Tensor, target: torch.Tensor, tokens: torch.Tensor
) -> None:
    source, target, tokens = (x.contiguous() for x in (source, target, tokens))
    layers, num_pages, page_size, heads, dim = k_cache.shape
    size = k_cache.element_size()
    _C.copy_pages(
        address(k_cache, *FLOATS),
        address(v_cache, k_cache.dtype),
        k_cache.stride(0) * size,
        k_cache.stride(1) * size,
        v_cache.stride(0) * size,
        v_cache.stride(1) * size,
        layers,
        num_pages,
        page_size,
        heads * dim * size,
        address(source, torch.int64),
        address(target, torch.int64),
        address(tokens, torch.int64),
        source.shape[0],
    )
