"""Groups of rows pooled to one row each: the sum of their log-softmax, and their product's mass, in three launches.

With m_k and s_k the maximum and the sum Σ_v e^(z_k(v) − m_k) of row k, which the block sums of ``sample_tokens`` give:

    pooled(v) = Σ_k ((z_k(v) − m_k) − log s_k)      log_mass = log Σ_v e^(pooled(v))

The second launch reads 2048 entries of every row of a group again and writes their pool with its maximum and sum, the
third merges those. Subtracting m_k first keeps the digits that z − (m + log s) loses when m is large. A row without
a distribution has log s NaN, which spreads over its group, so that such groups need no pass of their own. What the
last launch adds is which of the rows' faults it was.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import on_its_device
from .sample_tokens import MASKED, NAN, aligned_rows, block_statistics, finite_or_zero, row_normaliser

PART = 2048
ROW_SUMS = tl.constexpr(4)  # partial sums of a row without exponents


class PooledRows(NamedTuple):
    """One row per group: see ``pool_rows``."""

    pooled: torch.Tensor  # (G, V) float32
    log_mass: torch.Tensor  # (G,) float32
    status: torch.Tensor  # (G,) int32


@triton.jit
def group_range(starts_ptr, i_group, B):
    """First row of a group and how many it has, inside the batch whatever the device's numbers say."""
    first = tl.maximum(tl.load(starts_ptr + i_group), 0)
    return first, (tl.minimum(tl.load(starts_ptr + i_group + 1), B) - first).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        *("logits_ptr", "stride_row", "B", "V", "starts_ptr", "partial_ptr", "blocks", "pooled_ptr", "pool_ptr"),
    ]
)
def pool_kernel(
    logits_ptr,  # (B, V), stride (stride_row, 1)
    stride_row,
    B,
    V,
    starts_ptr,  # (G + 1,) int64
    partial_ptr,  # (B, 4, blocks) float32
    blocks,
    pooled_ptr,  # (G, V) float32 out
    pool_ptr,  # (G, 2, parts) float32 out: maximum and sum of every part of a pooled row
    PART: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Program (group, part)."""
    i_group = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    o_token = i_part * PART + tl.arange(0, PART)
    o_block = tl.arange(0, BLOCKS)
    # Loads as in ``statistics_kernel``: 16 bytes at once, what lies beyond the row's end left out.
    VECTOR: tl.constexpr = 128 // logits_ptr.dtype.element_ty.primitive_bitwidth
    m_vector = o_token // VECTOR < (V + VECTOR - 1) // VECTOR
    first, rows = group_range(starts_ptr, i_group, B)
    p_partial = partial_ptr + first * ROW_SUMS * blocks
    b_sum = tl.zeros((PART,), tl.float32)
    for i in range(rows):
        m, _, s = row_normaliser(p_partial, o_block, blocks)
        log_s = tl.where((s != s) | (s == 0.0), float("nan"), tl.log(s))
        p_row = tl.multiple_of(logits_ptr + (first + i) * stride_row, 16)
        b_z = tl.load(p_row + o_token, mask=m_vector, other=float("-inf"))
        b_sum += (b_z.to(tl.float32) - finite_or_zero(m)) - log_s
        p_partial += ROW_SUMS * blocks
    tl.store(pooled_ptr + i_group * V + o_token, b_sum, mask=o_token < V)
    b_sum = tl.where(o_token < V, b_sum, float("-inf"))
    m = tl.max(b_sum, axis=0)
    parts = tl.num_programs(1)
    p_pool = pool_ptr + i_group * 2 * parts + i_part
    tl.store(p_pool, m)
    tl.store(p_pool + parts, tl.sum(tl.exp(b_sum - finite_or_zero(m)), axis=0))


@triton.jit(
    do_not_specialize=[
        *("B", "starts_ptr", "partial_ptr", "blocks", "pool_ptr", "parts", "log_mass_ptr", "status_ptr"),
    ]
)
def mass_kernel(
    B,
    starts_ptr,  # (G + 1,) int64
    partial_ptr,  # (B, 4, blocks) float32
    blocks,
    pool_ptr,  # (G, 2, parts) float32
    parts,
    log_mass_ptr,  # (G,) float32 out
    status_ptr,  # (G,) int32 out
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    NAN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Program (group): its mass from its parts, its status from its rows."""
    i_group = tl.program_id(0).to(tl.int64)
    o_block = tl.arange(0, BLOCKS)
    o_part = tl.arange(0, PARTS)
    first, rows = group_range(starts_ptr, i_group, B)
    p_partial = partial_ptr + first * ROW_SUMS * blocks
    status = tl.zeros((), tl.int32)
    for _ in range(rows):
        _, _, s = row_normaliser(p_partial, o_block, blocks)
        status = status | tl.where(s != s, NAN, tl.where(s == 0.0, MASKED, 0))
        p_partial += ROW_SUMS * blocks
    p_pool = pool_ptr + i_group * 2 * parts + o_part
    b_m = tl.load(p_pool, mask=o_part < parts, other=float("-inf"))
    b_s = tl.load(p_pool + parts, mask=o_part < parts, other=0.0)
    m = tl.max(b_m, axis=0)
    s = tl.sum(b_s * tl.exp(b_m - finite_or_zero(m)), axis=0)
    log_mass = tl.where(s > 0.0, tl.minimum(finite_or_zero(m) + tl.log(s), 0.0), float("-inf"))
    tl.store(log_mass_ptr + i_group, tl.where(status != 0, float("nan"), log_mass))
    tl.store(status_ptr + i_group, status)


@on_its_device
def pool_rows(logits, starts):
    """Pooled rows; the contract is that of ``fastpower.kernels.pool_rows``.

    logits (B, V) with last stride 1, starts (G + 1,), on one device. Arguments are trusted.
    """
    (B, V), G, device = logits.shape, starts.shape[0] - 1, logits.device
    pooled = torch.empty((G, V), dtype=torch.float32, device=device)
    log_mass = torch.empty(G, dtype=torch.float32, device=device)
    status = torch.empty(G, dtype=torch.int32, device=device)
    if G == 0 or B == 0:
        return PooledRows(pooled, log_mass, status)
    starts = starts.contiguous()
    logits = aligned_rows(logits)
    partials = block_statistics(logits, torch.empty(0, dtype=torch.float32, device=device))
    blocks, BLOCKS, parts = partials.blocks, partials.constants["BLOCKS"], triton.cdiv(V, PART)
    pool = torch.empty((G, 2, parts), dtype=torch.float32, device=device)
    pool_kernel[(G, parts)](
        *(logits, logits.stride(0), B, V, starts, partials.sums, blocks, pooled, pool),
        **dict(PART=PART, BLOCKS=BLOCKS, num_warps=8),
    )
    mass_kernel[(G,)](
        *(B, starts, partials.sums, blocks, pool, parts, log_mass, status),
        **dict(BLOCKS=BLOCKS, PARTS=triton.next_power_of_2(parts), NAN=NAN, MASKED=MASKED, num_warps=1),
    )
    return PooledRows(pooled, log_mass, status)
