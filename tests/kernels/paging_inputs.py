"""Paged caches and ragged queries for tests and benches of ``append_kv``, ``copy_pages`` and ``paged_attention``."""

from typing import NamedTuple

import torch


class Case(NamedTuple):
    """The tensors of a ``paged_attention`` call, in its order."""

    query: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    page_table: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor


def make_case(
    lengths,
    queries=None,
    q_heads=9,
    kv_heads=3,
    head_dim=64,
    page_size=16,
    dtype=torch.float32,
    shared_tokens=0,
    seed=0,
):
    """Sequences of ``lengths`` tokens whose last ``queries`` tokens (default 1) are queries.

    Pages are scattered over the cache; slots that no token owns hold NaN and unused page-table entries -1. The first
    ``shared_tokens`` (whole pages) of all sequences are the same pages. The numbers that a token has depend on the
    seed, its sequence and its position only, so that cases that differ in page size or queries can be compared.
    """
    queries = [1] * len(lengths) if queries is None else queries
    shared_pages = shared_tokens // page_size
    own_pages = [max(0, -(-n // page_size) - shared_pages) for n in lengths]
    num_pages = shared_pages + sum(own_pages) + 2
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_pages, generator=g)
    table = torch.full((len(lengths), max(-(-n // page_size) for n in lengths) + 1), -1, dtype=torch.int32)
    k_cache = torch.full((num_pages, page_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    v_cache = k_cache.clone()
    query, next_page = [], shared_pages
    for s, (n, new, own) in enumerate(zip(lengths, queries, own_pages, strict=True)):
        table[s, :shared_pages] = order[:shared_pages]
        table[s, shared_pages : shared_pages + own] = order[next_page : next_page + own]
        next_page += own
        slot = torch.arange(n)
        page = table[s, slot // page_size].long()
        kv = _tokens(seed, s, n, 2 * kv_heads, head_dim, shared_tokens).to(dtype)
        k_cache[page, slot % page_size], v_cache[page, slot % page_size] = kv.chunk(2, dim=1)
        query.append(_tokens(seed + 1, s, n, q_heads, head_dim)[n - new :])
    starts = torch.tensor([0, *queries]).cumsum(0).to(torch.int32)
    return Case(torch.cat(query).to(dtype), k_cache, v_cache, table, starts, torch.tensor(lengths, dtype=torch.int32))


def make_tree(queries, seed=0):
    """``ancestors`` of a random tree per sequence, (sum(queries),) int64: every query but the first has a parent."""
    g, words = torch.Generator().manual_seed(seed), []
    for n in queries:
        own = []
        for i in range(n):
            parent = own[int(torch.randint(i, (), generator=g))] if i else 0
            own.append(parent | 1 << i)
        words += [word - (1 << 64) if word >> 63 else word for word in own]
    return torch.tensor(words, dtype=torch.int64)


def _tokens(seed, sequence, length, heads, dim, shared=0):
    """(length, heads, dim) standard normals; the first ``shared`` are those of sequence 0."""
    own = torch.randn(length, heads, dim, generator=torch.Generator().manual_seed(seed * 1000 + sequence))
    if shared and sequence:
        own[:shared] = torch.randn(shared, heads, dim, generator=torch.Generator().manual_seed(seed * 1000))
    return own


def gathered(case, s):
    """Query (Hq, n, D), key and value (Hkv, length, D) of sequence s, contiguous."""
    length = int(case.lengths[s])
    page_size = case.k_cache.shape[1]
    pages = case.page_table[s, : -(-length // page_size)].long()
    k, v = (cache[pages].flatten(0, 1)[:length].transpose(0, 1).contiguous() for cache in (case.k_cache, case.v_cache))
    return case.query[case.query_starts[s] : case.query_starts[s + 1]].transpose(0, 1).contiguous(), k, v


def visible(new, length, window=0):
    """(new, length) mask of the keys that each of the last ``new`` tokens sees."""
    own = torch.arange(length - new, length)[:, None]
    seen = torch.arange(length)[None, :]
    return (seen <= own) & (seen > own - window if window else torch.tensor(True))
