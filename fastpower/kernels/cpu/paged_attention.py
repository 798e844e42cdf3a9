from __future__ import annotations

import torch

from fastpower import _C


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
    check_only: bool = False,
) -> torch.Tensor:
    query, page_table = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, page_table))
    query_starts, lengths = query_starts.contiguous(), lengths.contiguous()
    starts, pages = (x.contiguous() for x in shared) if shared is not None else (None, None)
    num_pages, page_size, kv_heads, head_dim = k_cache.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    _C.paged_attention(
        query=query.data_ptr(),
        k_cache=k_cache.data_ptr(),
        v_cache=v_cache.data_ptr(),
        out=out.data_ptr(),
        dtype=_DTYPE[query.dtype],
        query_token_stride=query.stride(0),
        query_head_stride=query.stride(1),
        k_page_stride=k_cache.stride(0),
        v_page_stride=v_cache.stride(0),
        tokens=query.shape[0],
        q_heads=query.shape[1],
        kv_heads=kv_heads,
        head_dim=head_dim,
        num_pages=num_pages,
        page_size=page_size,
        page_table=page_table.data_ptr(),
        sequences=lengths.shape[0],
        max_pages=page_table.shape[1],
        table_stride=page_table.stride(0),
        query_starts=query_starts.data_ptr(),
        lengths=lengths.data_ptr(),
        shared_starts=0 if starts is None else starts.data_ptr(),
        shared_pages=0 if pages is None else pages.data_ptr(),
        groups=0 if pages is None else pages.shape[0],
        scale=head_dim**-0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        check_only=check_only,
    )
    return out


_DTYPE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
