from __future__ import annotations

import torch

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.arguments import FLOATS


def paged_attention(
    query: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    query_starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    shared: tuple[torch.Tensor, torch.Tensor] | None = None,
    ancestors: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    check_only: bool = False,
) -> torch.Tensor:
    query, page_table = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, page_table))
    query_starts, lengths = query_starts.contiguous(), lengths.contiguous()
    starts, pages = (x.contiguous() for x in shared) if shared is not None else (None, None)
    num_pages, page_size, kv_heads, head_dim = k_cache.shape
    ancestors = None if ancestors is None else ancestors.contiguous()
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _C.paged_attention(
        address(query, *FLOATS),
        address(k_cache, query.dtype),
        address(v_cache, query.dtype),
        address(out, query.dtype),
        _DTYPE[query.dtype],
        query.stride(0),
        query.stride(1),
        k_cache.stride(0),
        v_cache.stride(0),
        query.shape[0],
        query.shape[1],
        kv_heads,
        head_dim,
        num_pages,
        page_size,
        address(page_table, torch.int32),
        lengths.shape[0],
        page_table.shape[1],
        page_table.stride(0),
        address(query_starts, torch.int32),
        address(lengths, torch.int32),
        0 if starts is None else address(starts, torch.int32),
        0 if pages is None else address(pages, torch.int32),
        0 if pages is None else pages.shape[0],
        head_dim**-0.5 if scale is None else scale,
        window,
        softcap,
        0 if ancestors is None else address(ancestors, torch.int64),
        check_only,
    )
    return out


_DTYPE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
