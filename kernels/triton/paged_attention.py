"""Causal attention of ragged queries over paged keys and values, reduced over fixed splits of positions.

Positions are cut in splits of 256 tokens, aligned to position 0. Inside split c a query keeps, in base 2, running over
tiles of keys in order (the factors 2^(m_old − m_new) are left out here),

    m_c = max x_j       s_c = Σ 2^(x_j − m_c)       o_c = Σ 2^(x_j − m_c) v_j       x_j = scale · log2 e · q·k_j

and a second launch folds the splits together in order, starting from (−inf, 0, 0):

    m' = max(m, m_c)    s' = s 2^(m − m') + s_c 2^(m_c − m')    o' = o 2^(m − m') + o_c 2^(m_c − m')    output = o / s

A key that a query may not see gets x = −inf and adds exactly 0. So the bits of a query's row depend on its own keys
alone: what else is in the batch and whether a split was read for one sequence or once for a group that shares its
pages makes no difference. The sums of a split cost (D + 2) float32 per row, under HG / 100 of the K/V bytes they stand
for (HG = query heads per K/V head). A program takes one split for one tile of rows; ``attention_tiles`` cuts them.
"""

import torch

import triton
import triton.language as tl

from .attention_tiles import FIELDS, plan_shapes, plan_tiles, tile
from .device import Room, on_its_device
from .registers import ALL_REGISTERS

SPLIT = 256
MAX_PARTIAL_BYTES = 1 << 28  # longer prefills run in several launches
EVERY = tl.constexpr(1 << 30)  # a position after every key
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(x):
    """Lambert's continued fraction at x / 4, then tanh 2y = 2 t / (1 + t²) twice: relative error 3e-7 everywhere (the
    quotient of exponentials cancels near 0), no libdevice (the interpreter has none), no selection."""
    y = tl.minimum(tl.maximum(x, -9.0), 9.0) * 0.25
    y2 = y * y
    t = y * (135135.0 + y2 * (17325.0 + y2 * (378.0 + y2)))
    t = t / (135135.0 + y2 * (62370.0 + y2 * (3150.0 + y2 * 28.0)))
    t = 2.0 * t / (1.0 + t * t)
    return 2.0 * t / (1.0 + t * t)


@triton.jit
def attend_split(
    rows,  # (queries (M, DP), last position each sees (M,), ancestor words (M,), position of the first query)
    start,  # positions visited: from start (a multiple of N) to end − 1
    end,
    cache,
    score,
    D: tl.constexpr,
    DP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TREE: tl.constexpr,
):
    """(m, s, o) of one split for the rows of a tile."""
    b_q, b_last, b_ancestors, context = rows
    p_pages, p_k, p_v, k_stride_page, k_stride_slot, v_stride_page, v_stride_slot = cache
    scale, window, softcap = score
    o_n = tl.arange(0, N)
    o_d = tl.arange(0, DP)
    m_d = o_d < D
    m = tl.full((M,), float("-inf"), tl.float32)
    s = tl.zeros((M,), tl.float32)
    b_o = tl.zeros((M, DP), tl.float32)
    o_next = tl.load(p_pages + (start + o_n) // PAGE, mask=start + o_n < end, other=0)
    for i_start in range(start, end, N):
        o_token = i_start + o_n
        m_token = o_token < end
        o_page = o_next.to(tl.int64)
        o_next = tl.load(p_pages + (o_token + N) // PAGE, mask=o_token + N < end, other=0)
        o_k = o_page * k_stride_page + (o_token % PAGE) * k_stride_slot
        m_kv = m_token[:, None]
        if D < DP:
            m_kv = m_kv & m_d[None, :]
        b_k = tl.load(p_k + o_k[:, None] + o_d[None, :], mask=m_kv, other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        if SOFTCAP:
            b_s = softcap * tanh(b_s / softcap)
        b_age = b_last[:, None] - o_token[None, :]
        m_seen = b_age >= 0
        if WINDOW:
            m_seen = b_age.to(tl.uint32) < window  # negative ages are beyond every window
        if TREE:
            o_new = o_token - context
            b_bits = (b_ancestors[:, None] >> tl.minimum(tl.maximum(o_new, 0), 63).to(tl.int64)[None, :]).to(tl.int32)
            b_bits = b_bits | (o_new < 0).to(tl.int32)[None, :]
            m_seen = (b_age | ((b_bits & 1) - 1)) >= 0  # a hidden token's age becomes −1: one predicate, not three
        b_s = tl.where(m_seen, b_s * LOG2E, float("-inf"))
        m_new = tl.maximum(m, tl.max(b_s, axis=1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        decay = tl.exp2(m - m_safe)
        b_p = tl.exp2(b_s - m_safe[:, None])
        s = tl.fma(s, decay, tl.sum(b_p, axis=1))
        o_v = o_page * v_stride_page + (o_token % PAGE) * v_stride_slot
        b_v = tl.load(p_v + o_v[:, None] + o_d[None, :], mask=m_kv, other=0.0)
        b_o = tl.dot(b_p.to(b_v.dtype), b_v, b_o * decay[:, None], input_precision="ieee")
        m = m_new
    return m, s, b_o


SIZES = ("low", "high", "table_stride", "window")


@triton.jit(
    do_not_specialize=[
        *("page_table_ptr", "query_starts_ptr", "lengths_ptr", "ancestors_ptr", "tiles_ptr", "m_ptr", "s_ptr"),
        *SIZES,
    ]
)
def attend_kernel(
    query_ptr,  # (queries, Hq, D), last stride 1
    k_cache_ptr,  # (pages, PAGE, Hkv, D), last stride 1
    v_cache_ptr,
    page_table_ptr,  # (sequences, max_pages) int32
    query_starts_ptr,  # (sequences + 1,) int32
    lengths_ptr,  # (sequences,) int32
    ancestors_ptr,  # (queries,) int64, unused without TREE
    tiles_ptr,  # (T, 6) int32, see AttentionPlan
    out_ptr,  # FINAL: (queries, Hq, D) contiguous out; else (splits, high − low, Hq, D) float32 out
    m_ptr,  # (splits, high − low, Hq) float32 out, unused with FINAL
    s_ptr,
    low,  # this launch is for queries low … high − 1
    high,
    q_stride_token,
    q_stride_head,
    k_stride_page,
    k_stride_slot,
    k_stride_head,
    v_stride_page,
    v_stride_slot,
    v_stride_head,
    table_stride,
    scale,
    window,
    softcap,
    HG: tl.constexpr,  # query heads per K/V head
    D: tl.constexpr,
    DP: tl.constexpr,  # power of two ≥ D, at least 16
    M: tl.constexpr,
    N: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    FINAL: tl.constexpr,  # there is one split: write the output itself
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TREE: tl.constexpr,
):
    """Program (tile, K/V head, split) of a tile whose rows belong to one sequence, or, in the splits it shares, to a
    group."""
    p_tile = tiles_ptr + tl.program_id(0) * FIELDS
    i_sequence = tl.load(p_tile)
    if i_sequence < 0:
        return
    i_head = tl.program_id(1).to(tl.int64)
    first_query = tl.load(p_tile + 1)
    end_query = tl.load(p_tile + 2)
    first_row = tl.load(p_tile + 3)
    begin = tl.load(p_tile + 4)
    end = tl.load(p_tile + 5)
    length = end * 0 + EVERY  # a group's queries all see all of it
    shift = length
    context = length
    if end == 0:
        length = tl.load(lengths_ptr + i_sequence)
        # Position of a query = its index + shift; the last query of the sequence is at length − 1.
        shift = length - tl.load(query_starts_ptr + i_sequence + 1)
        context = shift + tl.load(query_starts_ptr + i_sequence)
        end = length
        if not TREE:
            end = tl.minimum(shift + first_query + (first_row + M - 1) // HG + 1, length)
    if WINDOW:
        begin = tl.maximum(shift + first_query + first_row // HG - window + 1, 0) // N * N
    begin = tl.maximum(begin, tl.program_id(2) * SPLIT)
    end = tl.minimum(end, tl.program_id(2) * SPLIT + SPLIT)
    if begin >= end:
        return

    o_row = first_row + tl.arange(0, M)
    o_d = tl.arange(0, DP)
    o_query = first_query + o_row // HG
    o_head = i_head * HG + o_row % HG
    m_row = o_query < end_query
    mask = m_row[:, None] & (o_d < D)[None, :]
    p_row = query_ptr + o_query.to(tl.int64) * q_stride_token + o_head * q_stride_head
    b_q = tl.load(p_row[:, None] + o_d[None, :], mask=mask, other=0.0)
    b_last = tl.where(m_row, shift + o_query, -1)
    b_ancestors = tl.zeros((M,), tl.int64)
    if TREE:
        b_ancestors = tl.load(ancestors_ptr + o_query, mask=m_row, other=0)
        b_last = tl.where(m_row, length - 1, -1)
    rows = (b_q, b_last, b_ancestors, context)
    cache = (
        page_table_ptr + i_sequence.to(tl.int64) * table_stride,
        k_cache_ptr + i_head * k_stride_head,
        v_cache_ptr + i_head * v_stride_head,
        k_stride_page,
        k_stride_slot,
        v_stride_page,
        v_stride_slot,
    )
    score = (scale, window, softcap)
    heads = tl.num_programs(1).to(tl.int64) * HG
    o_out = (o_query - low) * heads + o_head
    m, s, b_o = attend_split(rows, begin, end, cache, score, D, DP, M, N, PAGE, WINDOW, SOFTCAP, TREE)
    if FINAL:
        b_o = b_o / s[:, None]
    else:
        o_out += tl.program_id(2) * ((high - low) * heads)
        tl.store(m_ptr + o_out, m, mask=m_row)
        tl.store(s_ptr + o_out, s, mask=m_row)
    tl.store(out_ptr + o_out[:, None] * D + o_d[None, :], b_o.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m_ptr", "s_ptr", "last_ptr", "low", "count", "window"])
def fold_kernel(
    m_ptr,  # (splits, count, Hq) float32
    s_ptr,
    o_ptr,  # (splits, count, Hq, D) float32
    last_ptr,  # (queries,) int32: last position that each query sees
    out_ptr,  # (queries, Hq, D) contiguous out
    low,
    count,
    window,
    D: tl.constexpr,
    DP: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,  # splits that are read at a time
    WINDOW: tl.constexpr,
):
    """Program (query − low, query head): folds the splits that the query sees, in order, ``CHUNK`` at a time.

    Chunks are aligned to split 0, so that a window's beginning, like everything else, concerns the row alone."""
    i_query = low + tl.program_id(0)
    last = tl.load(last_ptr + i_query)
    first = 0
    if WINDOW:
        first = tl.maximum(last - window + 1, 0) // SPLIT
    end = last // SPLIT + 1
    o_chunk = tl.arange(0, CHUNK)
    o_d = tl.arange(0, DP)
    heads = tl.num_programs(1).to(tl.int64)
    m = tl.full((), float("-inf"), tl.float32)
    s = tl.zeros((), tl.float32)
    b_o = tl.zeros((DP,), tl.float32)
    start = first // CHUNK * CHUNK
    while start < end:
        o_split = start + o_chunk
        m_chunk = (o_split >= first) & (o_split < end)
        o_partial = (o_split * count + tl.program_id(0)) * heads + tl.program_id(1)
        b_m = tl.load(m_ptr + o_partial, mask=m_chunk, other=float("-inf"))
        b_s = tl.load(s_ptr + o_partial, mask=m_chunk, other=0.0)
        mask = m_chunk[:, None] & (o_d < D)[None, :]
        b_split = tl.load(o_ptr + o_partial[:, None] * D + o_d[None, :], mask=mask, other=0.0)
        m_new = tl.maximum(m, tl.max(b_m, axis=0))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        before = tl.exp2(m - m_safe)
        b_here = tl.exp2(b_m - m_safe)
        s = tl.fma(s, before, tl.sum(b_s * b_here, axis=0))
        b_o = b_o * before + tl.sum(b_split * b_here[:, None], axis=0)
        m = m_new
        start += CHUNK
    o_out = i_query * heads + tl.program_id(1)
    tl.store(out_ptr + o_out * D + o_d, (b_o / s).to(out_ptr.dtype.element_ty), mask=o_d < D)


@on_its_device
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
    plan=None,
    out=None,
    workspace=None,
):
    """Causal paged attention; the contract is that of ``fastpower.kernels.paged_attention``.

    Beyond the contract, ``ancestors`` (queries,) int64: the new tokens of a sequence, at most 64, form a tree, and bit
    j of a query's word says whether it sees new token j of its sequence (its own bit included) besides everything
    before the new tokens. Not together with ``window``. ``plan``: the ``AttentionPlan`` of these queries, made once for
    all layers; it takes the place of ``shared``. Without one a launch more makes it.

    Arguments are trusted. Nothing is read back from the device, so calls can be captured in a CUDA graph. There is a
    program per split of ``page_table``'s width, idle ones included: cut it to the pages in use.
    """
    queries, heads, D = query.shape
    page_size, kv_heads = k_cache.shape[1:3]
    max_pages = page_table.shape[1]
    if out is None:
        out = torch.empty((queries, heads, D), dtype=query.dtype, device=query.device)
    if queries == 0:
        return out
    if query.stride(2) != 1:
        query = query.contiguous()
    HG = heads // kv_heads
    M, N, num_warps, num_stages = tile(query.dtype, D)
    splits = triton.cdiv(max_pages * page_size, SPLIT)
    shape = dict(D=D, DP=max(16, triton.next_power_of_2(D)), SPLIT=SPLIT)
    window_flag, tree = window > 0, ancestors is not None
    if window_flag or splits == 1:
        shared = None  # under a window a shared prefix is soon out of sight: not worth a second kind of mask
    cut = dict(queries=queries, HG=HG, M=M, split=SPLIT, page_size=page_size, shared=shared, tree=tree)

    step = chunk_of(queries, splits, heads, D)
    for low in range(0, queries, step):
        count = min(step, queries - low)
        part, room = plan, Room(query.device, workspace, "paged_attention")
        if plan is None or count < queries:
            part = plan_tiles(query_starts, lengths, low=low, high=low + count, **cut, room=room)
        m = s = partial = out
        if splits > 1:
            partial = room.empty((splits, count, heads, D), torch.float32)
            m, s = room.empty((2, splits, count, heads), torch.float32)
        attend_kernel[(part.tiles.shape[0], kv_heads, splits)](
            *(query, k_cache, v_cache, page_table, query_starts, lengths),
            *(query_starts if ancestors is None else ancestors, part.tiles, partial, m, s, low, low + count),
            *(*query.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3], page_table.stride(0)),
            *(D**-0.5 if scale is None else scale, window, softcap),
            **dict(shape, HG=HG, M=M, N=N, PAGE=page_size, FINAL=splits == 1),
            **dict(WINDOW=window_flag, SOFTCAP=softcap > 0, TREE=tree, num_warps=num_warps, num_stages=num_stages),
            **ALL_REGISTERS,
        )
        if splits > 1:
            fold_kernel[(count, heads)](
                *(m, s, partial, part.last, out, low, count, window),
                **dict(shape, CHUNK=fold_chunk(shape["DP"]), WINDOW=window_flag, num_warps=4),
            )
    return out


def workspace(query, k_cache, page_table, lengths, groups):
    """Bytes that a call works in. A query with last stride other than 1 is copied besides."""
    (queries, heads, D), (page_size, kv_heads) = query.shape, k_cache.shape[1:3]
    splits = triton.cdiv(page_table.shape[1] * page_size, SPLIT)
    count = min(queries, chunk_of(queries, splits, heads, D))
    planned = plan_shapes(count, queries, lengths.shape[0], groups, heads // kv_heads, tile(query.dtype, D)[0])
    if splits == 1:
        return Room.bytes(*planned)
    parts = (((splits, count, heads, D), torch.float32), ((2, splits, count, heads), torch.float32))
    return Room.bytes(*planned, *parts)


def chunk_of(queries, splits, heads, D):
    """Queries whose partial results stand in memory at a time."""
    return queries if splits == 1 else max(1, MAX_PARTIAL_BYTES // (splits * heads * (D + 2) * 4))


def fold_chunk(DP):
    """Splits of which a fold has the sums under way at a time: 16 KB of them."""
    return 4096 // DP
