"""How the queries of ``paged_attention`` are cut in tiles.

A program's tile holds M rows, (query, head) pairs that read the same K/V head: the query heads of a decode step,
several queries of a prefill chunk, or the queries of all sequences that share a run of pages. M depends on dtype and
head dimension alone, since another tile would use another matrix instruction, and with it other bits.

Tiles are numbered flat over all owners (sequences, or groups of them). How many each has is on the device only, so a
launch has as many programs as there can be tiles, and each finds its own.
"""

import torch

import triton
import triton.language as tl


def tile(dtype, head_dim):
    """(M, N, num_warps, num_stages): rows and keys of a tile. A function of these two alone, see above; chosen for
    no spills and at least two programs per multiprocessor."""
    if dtype == torch.float32:
        return 16, 16, 8, 2
    return (16, 32, 4, 2) if head_dim <= 128 else (16, 16, 4, 2)


def tile_bound(owners, queries, HG, M):
    """At most so many tiles do the queries of all owners have, however they are shared out."""
    return (queries * HG + min(owners, queries) * (M - 1)) // M


@triton.jit
def locate(
    i_tile,
    query_starts_ptr,
    group_starts_ptr,
    count,
    low,
    high,
    IS_GROUP: tl.constexpr,
    M: tl.constexpr,
    HG: tl.constexpr,
    COUNT: tl.constexpr,
):
    """(owner, its first query, end of its queries, tile of the owner) of a flat tile index. Owners are sequences, or
    groups of sequences; each cuts its (query, head) rows in tiles of M. Only queries low … high − 1 count.
    owner ≥ count for tiles beyond the last."""
    o = tl.arange(0, COUNT)
    mask = o < count
    o_first = o
    o_end = o + 1
    if IS_GROUP:
        o_first = tl.load(group_starts_ptr + o, mask=mask, other=0)
        o_end = tl.load(group_starts_ptr + o + 1, mask=mask, other=0)
    b_first = tl.minimum(tl.maximum(tl.load(query_starts_ptr + o_first, mask=mask, other=0), low), high)
    b_end = tl.minimum(tl.maximum(tl.load(query_starts_ptr + o_end, mask=mask, other=0), low), high)
    b_tiles = ((b_end - b_first) * HG + M - 1) // M
    owner = tl.sum((tl.cumsum(b_tiles, axis=0) <= i_tile).to(tl.int32), axis=0)
    first = tl.sum(tl.where(o == owner, b_first, 0), axis=0)
    end = tl.sum(tl.where(o == owner, b_end, 0), axis=0)
    return owner, first, end, i_tile - tl.sum(tl.where(o < owner, b_tiles, 0), axis=0)


@triton.jit
def shared_end(
    i_sequence,
    group_starts_ptr,
    group_pages_ptr,
    groups,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """First position of a sequence after the splits that lie wholly in the pages its group shares."""
    o = tl.arange(0, GROUPS)
    mask = o < groups
    b_first = tl.load(group_starts_ptr + o, mask=mask, other=0)
    b_last = tl.load(group_starts_ptr + o + 1, mask=mask, other=0)
    b_pages = tl.load(group_pages_ptr + o, mask=mask, other=0)
    return tl.sum(tl.where((b_first <= i_sequence) & (i_sequence < b_last), b_pages, 0), axis=0) * PAGE // SPLIT * SPLIT
