"""Ancestors of a particle set from its log-weights, with the effective sample size and the log of the mean weight.

With w_i = e^(lw_i − m), m = max lw, all in float64:

    ess = (Σ w)² / Σ w²        log_mean = m + log Σ w − log N        C_i = w_0 + … + w_i

Ancestor k is the first index with C_i > t_k Σ w (never one of zero weight), where u are the caller's uniforms and

    systematic   t_k = (k + u_0) / N          offspring of i are ⌊N W_i⌋ or ⌈N W_i⌉, from one uniform
    stratified   t_k = (k + u_k) / N
    multinomial  t_k = u_k
    residual     the first Σ ⌊N W_i⌋ ancestors are those whole copies, in index order; the rest are multinomial on the
                 fractions N W_i − ⌊N W_i⌋, the j-th of them with u_j

The first launch writes the running sums of a row in chunks of 1024, the second finds ancestors by binary search. A
parallel scan is not monotone in its last bits; the running maximum over entries with weight makes it so, and leaves
entries without weight equal to their predecessors, so that none of them can be found. A row without any weight has
ancestors −1, ess 0 and log_mean −inf.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import on_its_device

BLOCK = 1024
SCHEMES = ("systematic", "stratified", "multinomial", "residual")


class Ancestors(NamedTuple):
    """See ``resample``."""

    index: torch.Tensor  # (…, N) int64
    ess: torch.Tensor  # (…,) float64
    log_mean: torch.Tensor  # (…,) float64


@triton.jit
def greater(a, b):
    return tl.maximum(a, b)


@triton.jit
def running_sum(b_mass, before):
    """Running sums of a chunk, monotone, and flat over entries without mass; ``before`` precedes the chunk."""
    b_running = before + tl.cumsum(b_mass, axis=0)
    b_running = tl.where(b_mass > 0.0, b_running, before)
    return tl.associative_scan(b_running, 0, greater)


@triton.jit(do_not_specialize=["N"])
def weights_kernel(
    log_weights_ptr,  # (rows, N) float64
    running_ptr,  # (rows, N) float64 out: of the weights, or of their fractions for residual
    copies_ptr,  # (rows, N) float64 out: running sums of the whole copies, residual only
    ess_ptr,  # (rows,) float64 out
    log_mean_ptr,
    N,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row)."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = log_weights_ptr + i_row * N
    o = tl.arange(0, BLOCK)
    m = tl.full((), float("-inf"), tl.float64)
    for start in range(0, N, BLOCK):
        m = tl.maximum(m, tl.max(tl.load(p_row + start + o, mask=start + o < N, other=float("-inf")), axis=0))
    m_safe = tl.where(m == float("-inf"), 0.0, m)
    total = tl.zeros((), tl.float64)
    squares = tl.zeros((), tl.float64)
    for start in range(0, N, BLOCK):
        b_w = tl.exp(tl.load(p_row + start + o, mask=start + o < N, other=float("-inf")) - m_safe)
        total += tl.sum(b_w, axis=0)
        squares += tl.sum(b_w * b_w, axis=0)
    tl.store(ess_ptr + i_row, tl.where(total > 0.0, total * total / squares, 0.0))
    tl.store(log_mean_ptr + i_row, m + tl.log(total) - tl.log(total * 0.0 + N))
    running = tl.zeros((), tl.float64)
    copies = tl.zeros((), tl.float64)
    for start in range(0, N, BLOCK):
        mask = start + o < N
        b_w = tl.exp(tl.load(p_row + start + o, mask=mask, other=float("-inf")) - m_safe)
        if RESIDUAL:
            b_expected = N * (b_w / tl.where(total > 0.0, total, 1.0))
            b_whole = tl.floor(b_expected)
            b_w = b_expected - b_whole
            b_copies = copies + tl.cumsum(b_whole, axis=0)
            tl.store(copies_ptr + i_row * N + start + o, b_copies, mask=mask)
            copies = tl.max(b_copies, axis=0)
        b_running = running_sum(b_w, running)
        tl.store(running_ptr + i_row * N + start + o, b_running, mask=mask)
        running = tl.max(b_running, axis=0)


@triton.jit
def first_above(p_running, b_threshold, N, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """First index whose running sum exceeds the threshold; N if none does."""
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + N
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        is_open = low < high
        is_above = tl.load(p_running + middle, mask=is_open, other=0.0) > b_threshold
        high = tl.where(is_open & is_above, middle, high)
        low = tl.where(is_open & (is_above == 0), middle + 1, low)
    return low


@triton.jit(do_not_specialize=["N"])
def search_kernel(
    running_ptr,  # (rows, N) float64
    copies_ptr,  # (rows, N) float64, residual only
    ess_ptr,  # (rows,) float64: 0 for a row without weight
    uniforms_ptr,  # (rows, 1) for systematic, else (rows, N) float64
    index_ptr,  # (rows, N) int64 out
    N,
    SCHEME: tl.constexpr,  # index into SCHEMES
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, part of its ancestors)."""
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = o < N
    p_running = running_ptr + i_row * N
    total = tl.load(p_running + N - 1)
    if SCHEME == 0:
        b_t = (o + tl.load(uniforms_ptr + i_row)) / N
    else:
        o_uniform = o
        if SCHEME == 3:
            whole = tl.load(copies_ptr + i_row * N + N - 1).to(tl.int32)
            o_uniform = tl.maximum(o - whole, 0)
        b_t = tl.load(uniforms_ptr + i_row * N + o_uniform, mask=mask, other=0.0)
        if SCHEME == 1:
            b_t = (o + b_t) / N
    b_index = first_above(p_running, b_t * total, N, STEPS, BLOCK)
    # Rounding at the very end: the last entry with weight is the first one that reaches the total.
    last = first_above(p_running, tl.zeros((BLOCK,), tl.float64) + total * (1.0 - 1e-15), N, STEPS, BLOCK)
    b_index = tl.where(b_index < N, b_index, last)
    if SCHEME == 3:
        b_whole = first_above(copies_ptr + i_row * N, o.to(tl.float64), N, STEPS, BLOCK)
        b_index = tl.where(o < whole, b_whole, b_index)
    b_index = tl.where(tl.load(ess_ptr + i_row) > 0.0, tl.minimum(b_index, N - 1), -1)
    tl.store(index_ptr + i_row * N + o, b_index.to(tl.int64), mask=mask)


@on_its_device
def resample(log_weights, uniforms, *, scheme="systematic"):
    """Ancestors by ``scheme``; the contract is that of ``fastpower.kernels.resample``.

    log_weights (N,) or (R, N) float64; uniforms in (0, 1), float64, (…, 1) for systematic and (…, N) otherwise.
    Arguments are trusted.
    """
    shape = log_weights.shape
    N = shape[-1]
    rows = log_weights.numel() // max(N, 1)
    log_weights, uniforms = log_weights.contiguous(), uniforms.contiguous()
    running = torch.empty_like(log_weights)
    copies = torch.empty_like(log_weights) if scheme == "residual" else running
    index = torch.empty(shape, dtype=torch.int64, device=log_weights.device)
    ess, log_mean = torch.empty((2, *shape[:-1]), dtype=torch.float64, device=log_weights.device)
    if rows > 0 and N > 0:
        residual = scheme == "residual"
        block = min(BLOCK, triton.next_power_of_2(N))
        weights_kernel[(rows,)](
            *(log_weights, running, copies, ess, log_mean, N), **dict(RESIDUAL=residual, BLOCK=block, num_warps=4)
        )
        search_kernel[(rows, triton.cdiv(N, block))](
            *(running, copies, ess, uniforms, index, N),
            **dict(SCHEME=SCHEMES.index(scheme), STEPS=N.bit_length(), BLOCK=block, num_warps=4),
        )
    return Ancestors(index, ess, log_mean)
