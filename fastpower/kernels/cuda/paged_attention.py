"""Launcher of csrc/cuda/paged_attention.cu: attention of ragged queries over pages."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower.kernels.cuda import library
from fastpower.kernels.dispatch import resolve

SPLIT = 256  #: positions, as in the kernel
ENOUGH = 512  #: (query, K/V head) pairs that fill a large GPU; with fewer, splits are spread over it


def workspace(query: Tensor, k_cache: Tensor, page_table: Tensor, lengths: Tensor, groups: int) -> int:
    """Bytes that a call without ``ancestors`` works in; trees go to Triton and need its."""
    return 4 * _scratch_floats(query, k_cache, page_table.shape[1])


def _scratch_floats(query: Tensor, k_cache: Tensor, max_pages: int) -> int:
    (queries, heads, dim), (_, page_size, kv_heads, _) = query.shape, k_cache.shape
    splits = -(-max_pages * page_size // SPLIT)
    return queries * heads * splits * (dim + 2) if splits > 1 and queries * kv_heads < ENOUGH else 0


def paged_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    shared: tuple[Tensor, Tensor] | None = None,
    ancestors: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """The façade's docstring is the contract. Made for decoding: prefill runs a query at a time.

    ``shared`` is not used. A page outside the cache makes the rows that need it NaN. Trees (``ancestors``) go to
    Triton.
    """
    if ancestors is not None:
        options = {"scale": scale, "window": window, "softcap": softcap, "shared": shared, "ancestors": ancestors}
        options |= {"out": out, "workspace": workspace}
        run = resolve("paged_attention", "triton", query.device)
        tree: Tensor = run(query, k_cache, v_cache, page_table, query_starts, lengths, **options)
        return tree
    query = query.contiguous()
    pages, page_size, kv_heads, dim = k_cache.shape
    queries, heads = query.shape[:2]
    max_pages = page_table.shape[1]
    if out is None:
        out = torch.empty_like(query)
    scratch = None
    size = _scratch_floats(query, k_cache, max_pages)
    if size:
        scratch = (
            torch.empty(size, dtype=torch.float32, device=query.device)
            if workspace is None
            else library.floats_of("paged_attention", workspace, size)
        )
    library.call(
        "fastpower_paged_attention",
        query.device,
        query,
        k_cache,
        v_cache,
        out,
        library.DTYPES[query.dtype],
        queries,
        heads,
        kv_heads,
        dim,
        pages,
        page_size,
        k_cache.stride(0),
        v_cache.stride(0),
        page_table.contiguous(),
        query_starts.contiguous(),
        lengths.contiguous(),
        lengths.shape[0],
        max_pages,
        dim**-0.5 if scale is None else scale,
        window,
        softcap,
        scratch,
    )
    return out
