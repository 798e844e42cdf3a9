"""How the queries of ``paged_attention`` are cut in tiles.

A program's tile holds M rows, (query, head) pairs that read the same K/V head: the query heads of a decode step,
several queries of a prefill chunk, or the queries of all sequences that share a run of pages. M depends on dtype and
head dimension alone, since another tile would use another matrix instruction, and with it other bits.

Which tiles there are is a plan, made once for all layers of a step: by the host, which knows how many queries each
sequence has, or by ``plan_tiles`` on the device where only the device knows.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import Room, on_its_device

FIELDS = tl.constexpr(6)  # of a tile, see AttentionPlan


class AttentionPlan(NamedTuple):
    """The tiles of one call of ``paged_attention``, the same for all its K/V heads, splits and layers.

    A tile is six numbers: row of the page table to read (−1: idle), first query of its owner and the end of them,
    first of the tile's (query, head) rows counted from there, and positions begin … end − 1 that all its queries see;
    end = 0 stands for a tile of one sequence, which starts at position ``begin`` and ends where causality does.
    """

    tiles: torch.Tensor  # (T, 6) int32
    last: torch.Tensor  # (queries,) int32: last position that each query sees


def tile(dtype, head_dim):
    """(M, N, num_warps, num_stages): rows and keys of a tile. A function of these two alone, see above; chosen for
    no spills and at least two programs per multiprocessor."""
    if dtype == torch.float32:
        return 16, 16, 8, 3
    return (16, 32, 4, 3) if head_dim <= 128 else (16, 16, 4, 3)


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
    BLOCK: tl.constexpr,
):
    """(owner, its first query, end of its queries, tile of the owner) of a flat tile index. Owners are sequences, or
    groups of sequences; each cuts its (query, head) rows in tiles of M. Only queries low … high − 1 count.
    owner = −1 for tiles beyond the last."""
    owner = i_tile * 0 - 1
    first = i_tile * 0
    end = i_tile * 0
    place = i_tile * 0
    before = i_tile * 0  # tiles of the owners so far
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        mask = o < count
        o_first = o
        o_end = o + 1
        if IS_GROUP:
            o_first = tl.load(group_starts_ptr + o, mask=mask, other=0)
            o_end = tl.load(group_starts_ptr + o + 1, mask=mask, other=0)
        b_first = tl.minimum(tl.maximum(tl.load(query_starts_ptr + o_first, mask=mask, other=0), low), high)
        b_end = tl.minimum(tl.maximum(tl.load(query_starts_ptr + o_end, mask=mask, other=0), low), high)
        b_tiles = ((b_end - b_first) * HG + M - 1) // M
        b_after = before + tl.cumsum(b_tiles, axis=0)
        b_before = b_after - b_tiles
        m_here = (b_before <= i_tile) & (i_tile < b_after)  # at most one
        owner += tl.sum(tl.where(m_here, o + 1, 0), axis=0)
        first += tl.sum(tl.where(m_here, b_first, 0), axis=0)
        end += tl.sum(tl.where(m_here, b_end, 0), axis=0)
        place += tl.sum(tl.where(m_here, i_tile - b_before, 0), axis=0)
        before += tl.sum(b_tiles, axis=0)
    return owner, first, end, place


@triton.jit
def shared_end(i_sequence, group_starts_ptr, group_pages_ptr, groups, PAGE, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """First position of a sequence after the splits that lie wholly in the pages its group shares."""
    pages = i_sequence * 0
    for start in range(0, groups, BLOCK):
        o = start + tl.arange(0, BLOCK)
        mask = o < groups
        b_first = tl.load(group_starts_ptr + o, mask=mask, other=0)
        b_last = tl.load(group_starts_ptr + o + 1, mask=mask, other=0)
        b_pages = tl.load(group_pages_ptr + o, mask=mask, other=0)
        pages += tl.sum(tl.where((b_first <= i_sequence) & (i_sequence < b_last), b_pages, 0), axis=0)
    return pages * PAGE // SPLIT * SPLIT


PLAN_SIZES = ("sequences", "groups", "low", "high", "own_tiles", "page_size")


@triton.jit(
    do_not_specialize=[
        *("query_starts_ptr", "lengths_ptr", "group_starts_ptr", "group_pages_ptr", "tiles_ptr", "last_ptr"),
        *PLAN_SIZES,
    ]
)
def plan_kernel(
    query_starts_ptr,  # (sequences + 1,) int32
    lengths_ptr,  # (sequences,) int32
    group_starts_ptr,  # (groups + 1,) int32
    group_pages_ptr,  # (groups,) int32
    tiles_ptr,  # (T, 6) int32 out
    last_ptr,  # (queries,) int32 out
    sequences,
    groups,
    low,
    high,
    own_tiles,
    page_size,
    M: tl.constexpr,
    HG: tl.constexpr,
    SPLIT: tl.constexpr,
    TREE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (tile): finds itself. Those from ``own_tiles`` on are tiles of groups."""
    i_program = tl.program_id(0)
    p_tile = tiles_ptr + i_program * FIELDS
    if i_program < own_tiles:
        owner, first, end, place = locate(
            i_program, query_starts_ptr, group_starts_ptr, sequences, low, high, False, M, HG, BLOCK
        )
        row = owner
        begin = shared_end(owner, group_starts_ptr, group_pages_ptr, groups, page_size, SPLIT, BLOCK)
        limit = owner * 0
        length = tl.load(lengths_ptr + owner, mask=owner >= 0, other=0)
        b_query = first + (place * M + tl.arange(0, M)) // HG
        b_last = tl.zeros((M,), tl.int32) + length - 1
        if not TREE:
            b_last += b_query + 1 - tl.load(query_starts_ptr + owner + 1, mask=owner >= 0, other=0)
        tl.store(last_ptr + b_query, b_last, mask=b_query < tl.where(owner >= 0, end, 0))
    else:
        owner, first, end, place = locate(
            i_program - own_tiles, query_starts_ptr, group_starts_ptr, groups, low, high, True, M, HG, BLOCK
        )
        begin = owner * 0
        limit = tl.load(group_pages_ptr + owner, mask=owner >= 0, other=0) * page_size // SPLIT * SPLIT
        row = tl.load(group_starts_ptr + owner, mask=owner >= 0, other=-1)
        row = tl.where(limit > 0, row, -1)
    tl.store(p_tile, row)
    tl.store(p_tile + 1, first)
    tl.store(p_tile + 2, end)
    tl.store(p_tile + 3, place * M)
    tl.store(p_tile + 4, begin)
    tl.store(p_tile + 5, limit)


@on_its_device
def plan_tiles(
    query_starts, lengths, *, queries, HG, M, split, page_size, low=0, high=None, shared=None, tree=False, room=None
):
    """The plan of queries low … high − 1 (default all), made on the device: one launch."""
    high = queries if high is None else high
    sequences, groups = lengths.shape[0], 0 if shared is None else shared[1].shape[0]
    own_tiles, group_tiles = (tile_bound(owners, high - low, HG, M) for owners in (sequences, groups))
    room = Room(lengths.device) if room is None else room
    tiles, last = (room.empty(*part) for part in plan_shapes(high - low, queries, sequences, groups, HG, M))
    plan_kernel[(own_tiles + group_tiles,)](
        *(query_starts, lengths, *(shared if groups else (query_starts, lengths)), tiles, last),
        *(sequences, groups, low, high, own_tiles, page_size),
        **dict(M=M, HG=HG, SPLIT=split, TREE=tree, BLOCK=256, num_warps=4),
    )
    return AttentionPlan(tiles, last)


def plan_shapes(count, queries, sequences, groups, HG, M):
    """((shape, dtype) of the tiles, of last) of a plan of ``count`` of the queries."""
    tiles = sum(tile_bound(owners, count, HG, M) for owners in (sequences, groups))
    return ((tiles, 6), torch.int32), ((queries,), torch.int32)
