"""Launcher of csrc/cuda/paged_copy.cu: page copies in all layers, one launch."""

from __future__ import annotations

from torch import Tensor

from fastpower.kernels.cuda import library


def copy_pages(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor) -> None:
    """In place; the contract is the façade's docstring. Copies that name a page outside the cache do nothing."""
    layers, pages, page_size, heads, head_dim = k_cache.shape
    size = k_cache.element_size()
    library.call(
        "fastpower_copy_pages",
        k_cache.device,
        k_cache,
        v_cache,
        source.contiguous(),
        target.contiguous(),
        tokens.contiguous(),
        source.shape[0],
        layers,
        pages,
        page_size,
        heads * head_dim * size,
        *(stride * size for cache in (k_cache, v_cache) for stride in cache.stride()[:2]),
    )
