"""Causal attention of ragged queries over paged keys and values, in float64.

For a query q at position t of its sequence, with keys k_j and values v_j of that sequence:

    s_j = scale * q.k_j,    s_j <- softcap * tanh(s_j / softcap) if softcap > 0
    o   = sum_j softmax(s)_j v_j    over max(0, t - window + 1) <= j <= t   (window = 0: over all j <= t)

With ``ancestors`` the new tokens of a sequence form a tree, and of them a query sees only those whose bit its word has.
"""

from __future__ import annotations

import torch


def paged_attention(
    query,
    k_cache,
    v_cache,
    page_table,
    query_starts,
    lengths,
    *,
    scale=None,
    window=0,
    softcap=0.0,
    shared=None,
    ancestors=None,
):
    """query (N, Hq, D); caches (pages, page_size, Hkv, D); page_table (S, max_pages); query_starts (S+1,);
    lengths (S,); ancestors (N,) or None. ``shared`` changes nothing here. Returns (N, Hq, D) of the query's dtype.
    """
    page_size, kv_heads, head_dim = k_cache.shape[1:]
    group = query.shape[1] // kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    starts = query_starts.tolist()
    for s, length in enumerate(lengths.tolist()):
        rows = slice(starts[s], starts[s + 1])
        new = rows.stop - rows.start
        if new == 0:
            continue
        pages = page_table[s, : -(-length // page_size)].long()
        # (kv_heads, length, D)
        k = k_cache[pages].flatten(0, 1)[:length].transpose(0, 1).double()
        v = v_cache[pages].flatten(0, 1)[:length].transpose(0, 1).double()
        # (kv_heads, group, new, D): query head h reads key/value head h // group
        q = query[rows].double().unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
        score = q @ k.unsqueeze(1).transpose(-1, -2) * scale
        if softcap > 0:
            score = softcap * torch.tanh(score / softcap)
        own = torch.arange(length - new, length, dtype=torch.int64, device=query.device)[:, None]
        seen = torch.arange(length, dtype=torch.int64, device=query.device)[None, :]
        visible = seen <= own
        if window > 0:
            visible &= seen > own - window
        if ancestors is not None:  # bit j of a query's word: it sees new token j
            visible[:, length - new :] &= (
                ancestors[rows][:, None] >> torch.arange(new, dtype=torch.int64, device=query.device) & 1
            ).bool()
        p = score.masked_fill(~visible, -torch.inf).softmax(-1)
        out[rows] = (p @ v.unsqueeze(1)).permute(2, 0, 1, 3).flatten(1, 2).to(query.dtype)
    return out
