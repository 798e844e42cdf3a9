"""Attention through flash-attn's ``flash_attn_with_kvcache``, reading paged K/V through its block table.

That function takes a rectangular batch (sequences, queries per sequence, heads, head_dim), so of ragged work it can
take two kinds, told apart by shapes alone (asking the device would stall it):

    decode    as many queries as sequences, one each
    prefill   a single sequence, any number of queries: a chunk at the end of its tokens

Everything else (decode and prefill mixed, trees, several prefills, float32, pages that are not a multiple of 256
tokens) goes to Triton. Queries are the last tokens of their sequence, which is how ``causal=True`` aligns its mask
there; a window of w tokens counts the query's own, so it is ``window_size=(w − 1, 0)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastpower.interfaces import interface
from fastpower.kernels.dispatch import resolve

PAGE = 256  #: pages must be a multiple of this


def refusal(query: Tensor, k_cache: Tensor, lengths: Tensor) -> str | None:
    """None if flash-attn takes this batch, else why not."""
    queries, sequences, page_size = query.shape[0], lengths.shape[0], k_cache.shape[1]
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"{query.dtype} is not a 16-bit type"
    if page_size % PAGE:
        return f"page_size {page_size} is not a multiple of {PAGE}"
    if queries == 0 or sequences == 0:
        return "the batch is empty"
    if queries != sequences and sequences != 1:
        return f"{queries} queries of {sequences} sequences are neither one each nor of one sequence"
    return None


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
) -> Tensor:
    """The façade's docstring is the contract, but every sequence must own at least one query.

    A decode batch could not be told from its shape otherwise. ``shared`` is not used.

    One split of the keys (``num_splits=1``): flash-attn's own choice depends on the batch and would change a row's bits
    with it. Few sequences with long contexts therefore leave much of a GPU idle; Triton splits those in a fixed way.
    """
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    if ancestors is not None or refusal(query, k_cache, lengths) is not None:
        run = resolve("paged_attention", "triton", query.device)
        options |= {"shared": shared, "ancestors": ancestors}
        out: Tensor = run(query, k_cache, v_cache, page_table, query_starts, lengths, **options)
        return out
    with interface("flash_attn"):
        from flash_attn import flash_attn_with_kvcache

    batch: Tensor = flash_attn_with_kvcache(
        query.reshape(lengths.shape[0], -1, *query.shape[1:]),
        k_cache,
        v_cache,
        cache_seqlens=lengths.contiguous(),
        block_table=page_table,
        softmax_scale=query.shape[-1] ** -0.5 if scale is None else scale,
        causal=True,
        window_size=(window - 1, 0) if window else (-1, -1),
        softcap=softcap,
        num_splits=1,
    )
    return batch.flatten(0, 1)
