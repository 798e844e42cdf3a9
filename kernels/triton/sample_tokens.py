"""Statistics of a logits row and draws from its power distribution, in three launches.

A row z of V logits is cut into fixed blocks of 4096. For each block b, relative to its own maximum m_b:

    s_b = Σ e^(z−m_b)      t_b = Σ (z−m_b) e^(z−m_b)      s_{e,b} = Σ e^(e (z−m_b))   for alpha and every exponent e

Nothing overflows (every exponent is ≤ 0) and at least one term of an unmasked block is exactly 1. A masked entry is
e^(−inf) = 0; its product with −inf in t is selected away. With d_b = m_b − m, the row's sums are

    s = Σ s_b e^(d_b)      t = Σ e^(d_b) (t_b + d_b s_b)      s_e = Σ s_{e,b} e^(e d_b)
    lse = m + log s        entropy = log s − t / s            logz_e = log s_e − e log s

A NaN or +inf anywhere makes s NaN, which is how such rows are recognised: no second pass.

A draw is an inverse CDF twice, once over the block masses s_{alpha,b} e^(alpha (m_b − M)) and once inside the chosen
block, the only one that is read again. Running sums are float64, so that a uniform of 32 bits is not rounded away.
With an excluded token its block is summed again without it and M is the maximum of what is left: subtracting its mass
would lose a remainder that is many orders of magnitude smaller.

Bits: a row's sums depend on the row alone. Blocks are fixed, nothing is tuned, and every row is read in vectors of 16
bytes (one that does not start at a multiple of 16 is copied first), since another width would change how a block is
laid out over threads, and with it the order of its sums.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import Room, on_its_device

BLOCK = 4096
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
NAN, MASKED, EXHAUSTED = 1, 2, 4  # bits of fastpower.kernels.Status

# Rows of the partial sums of one logits row: (4 + E, blocks).
MAX, SUM, MOMENT, ALPHA_SUM, FIRST_EXPONENT = (tl.constexpr(i) for i in range(5))


class TokenSamples(NamedTuple):
    """D draws from B rows with E exponents: see ``sample_tokens``."""

    token: torch.Tensor  # (D,) int64
    logp: torch.Tensor  # (D,) float32
    logz: torch.Tensor  # (B, E) float32
    entropy: torch.Tensor  # (B,) float32
    status: torch.Tensor  # (B,) int32


@triton.jit
def finite_or_zero(m):
    """A maximum to subtract: −inf − (−inf) would be NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit(do_not_specialize=["logits_ptr", "stride_row", "V", "alpha_ptr", "exponents_ptr", "partial_ptr"])
def statistics_kernel(
    logits_ptr,  # (B, V), stride (stride_row, 1)
    stride_row,
    V,
    alpha_ptr,  # (B,) float32, unused without HAS_ALPHA
    exponents_ptr,  # (E,) float32
    partial_ptr,  # (B, 4 + E, blocks) float32 out
    E: tl.constexpr,
    HAS_ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block): the partial sums of one block."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    o_token = i_block * BLOCK + tl.arange(0, BLOCK)
    # Rows start at multiples of 16 bytes (``aligned_rows``), so 16 bytes are asked for at once. The last vector may
    # reach beyond the row, never beyond its 16 bytes; what it brings from there is left out.
    VECTOR: tl.constexpr = 128 // logits_ptr.dtype.element_ty.primitive_bitwidth
    p_logits = tl.multiple_of(logits_ptr + i_row * stride_row, 16)
    m_vector = o_token // VECTOR < (V + VECTOR - 1) // VECTOR
    b_z = tl.load(p_logits + o_token, mask=m_vector, other=float("-inf")).to(tl.float32)
    b_z = tl.where(o_token < V, b_z, float("-inf"))

    m = tl.max(b_z, axis=0)
    b_d = (b_z - finite_or_zero(m)) * LOG2E  # exponentials of the hardware have base 2: one factor for all of them
    b_p = tl.exp2(b_d)
    blocks = tl.num_programs(1)
    p_partial = partial_ptr + i_row * (FIRST_EXPONENT + E) * blocks + i_block
    tl.store(p_partial + MAX * blocks, m)
    tl.store(p_partial + SUM * blocks, tl.sum(b_p, axis=0))
    # A masked entry has 0 · (−1e30) here instead of the NaN of 0 · −inf; no logits lie 1e30 apart and count.
    tl.store(p_partial + MOMENT * blocks, tl.sum(tl.maximum(b_d, -1e30) * b_p, axis=0) * LN2)

    alpha = 1.0
    s_alpha = 0.0
    if HAS_ALPHA:
        alpha = tl.load(alpha_ptr + i_row)
        s_alpha = tl.sum(tl.exp2(alpha * b_d), axis=0)
        tl.store(p_partial + ALPHA_SUM * blocks, s_alpha)
    for e in tl.static_range(E):
        exponent = tl.load(exponents_ptr + e)
        s_e = s_alpha
        # Exponentials bound this kernel in bf16: the usual case, the target's exponent is the proposal's, saves one.
        if not HAS_ALPHA or exponent != alpha:
            s_e = tl.sum(tl.exp2(exponent * b_d), axis=0)
        tl.store(p_partial + (FIRST_EXPONENT + e) * blocks, s_e)


@triton.jit
def row_normaliser(p_partial, o_block, blocks):
    """(m, d_b, s): maximum, block offsets and sum of one row from its blocks. s is NaN if the row has a NaN or +inf."""
    m_block = tl.load(p_partial + MAX * blocks + o_block, mask=o_block < blocks, other=float("-inf"))
    s_block = tl.load(p_partial + SUM * blocks + o_block, mask=o_block < blocks, other=0.0)
    m = tl.max(m_block, axis=0)
    d_block = m_block - finite_or_zero(m)
    return m, d_block, tl.sum(s_block * tl.exp(d_block), axis=0)


@triton.jit
def merge_row(
    p_partial,
    i_row,
    blocks,
    exponents_ptr,
    logz_ptr,
    entropy_ptr,
    status_ptr,
    E: tl.constexpr,
    BLOCKS: tl.constexpr,
    NAN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Writes entropy, logz and status of one row; returns (m, log s), its log-sum-exp in two parts, because
    z − m − log s keeps the digits that z − (m + log s) loses when m is large. log s is NaN without a distribution."""
    o_block = tl.arange(0, BLOCKS)
    m_block = o_block < blocks
    m, b_d, s = row_normaliser(p_partial, o_block, blocks)
    b_scale = tl.exp(b_d)
    b_s = tl.load(p_partial + SUM * blocks + o_block, mask=m_block, other=0.0)
    b_t = tl.load(p_partial + MOMENT * blocks + o_block, mask=m_block, other=0.0)
    t = tl.sum(tl.where(b_scale > 0.0, b_scale * (b_t + b_d * b_s), 0.0), axis=0)
    is_nan = s != s
    is_masked = s == 0.0
    log_s = tl.where(is_nan | is_masked, float("nan"), tl.log(s))
    tl.store(entropy_ptr + i_row, log_s - t / s)
    for e in tl.static_range(E):
        exponent = tl.load(exponents_ptr + e)
        b_e = tl.load(p_partial + (FIRST_EXPONENT + e) * blocks + o_block, mask=m_block, other=0.0)
        s_e = tl.sum(b_e * tl.exp(exponent * b_d), axis=0)
        tl.store(logz_ptr + i_row * E + e, tl.log(s_e) - exponent * log_s)
    tl.store(status_ptr + i_row, tl.where(is_nan, NAN, tl.where(is_masked, MASKED, 0)))
    return m, log_s


@triton.jit(do_not_specialize=["partial_ptr", "blocks", "exponents_ptr", "logz_ptr", "entropy_ptr", "status_ptr"])
def merge_kernel(
    partial_ptr,  # (B, 4 + E, blocks)
    blocks,
    exponents_ptr,
    logz_ptr,  # (B, E) float32 out
    entropy_ptr,  # (B,) float32 out
    status_ptr,  # (B,) int32 out
    E: tl.constexpr,
    BLOCKS: tl.constexpr,  # power of two ≥ blocks
    NAN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Program (row): its statistics from its blocks."""
    i_row = tl.program_id(0).to(tl.int64)
    p_partial = partial_ptr + i_row * (FIRST_EXPONENT + E) * blocks
    merge_row(p_partial, i_row, blocks, exponents_ptr, logz_ptr, entropy_ptr, status_ptr, E, BLOCKS, NAN, MASKED)


@triton.jit
def uniforms(key, position):
    """Two float64 uniforms in (0, 1): words 0 and 1 of Philox4x32-10 at counter (position mod 2^32, 0, 0, 0)."""
    c0 = position.to(tl.uint32)
    zero = c0 * 0
    w0, w1, _, _ = tl.philox(key, c0, zero, zero, zero)
    return (w0.to(tl.float64) + 0.5) * 2.3283064365386963e-10, (w1.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def inverse_cdf(b_mass, o_entry, threshold, ENTRIES: tl.constexpr):
    """(index, mass before it) of the first entry with mass whose running sum exceeds the threshold; the last one with
    mass if rounding leaves none; index −1 if there is no mass. Float64. A parallel scan is not monotone in its last
    bits, so an empty entry must be ruled out."""
    b_running = tl.cumsum(b_mass, axis=0)
    first = tl.min(tl.where((b_mass > 0.0) & (b_running > threshold), o_entry, ENTRIES), axis=0)
    last = tl.max(tl.where(b_mass > 0.0, o_entry, -1), axis=0)
    index = tl.where(first == ENTRIES, last, first)
    return index, tl.sum(tl.where(o_entry < index, b_mass, 0.0), axis=0)


@triton.jit
def load_logits(p_logits, o_token, V, exclude):
    """Logits as float32; −inf beyond the row's end and at the excluded token (−1 = none)."""
    m_token = (o_token < V) & (o_token != exclude)
    return tl.load(p_logits + o_token, mask=m_token, other=float("-inf")).to(tl.float32)


@triton.jit(
    do_not_specialize=[
        *("logits_ptr", "stride_row", "B", "V", "alpha_ptr", "partial_ptr", "blocks", "rows_ptr", "keys_ptr"),
        *("positions_ptr", "exclude_ptr", "token_ptr", "logp_ptr", "status_ptr"),
    ]
)
def draw_kernel(
    logits_ptr,  # (B, V), stride (stride_row, 1)
    stride_row,
    B,
    V,
    alpha_ptr,  # (B,) float32
    partial_ptr,  # (B, 4 + E, blocks)
    blocks,
    rows_ptr,  # (D,) int64
    keys_ptr,  # (D,) int64
    positions_ptr,  # (D,) int64
    exclude_ptr,  # (D,) int64, unused without HAS_EXCLUDE
    token_ptr,  # (D,) int64 out
    logp_ptr,  # (D,) float32 out
    status_ptr,  # (B,) int32, EXHAUSTED is added
    E: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    EXHAUSTED: tl.constexpr,
):
    """Program (draw): chooses a block by its mass, reads it again, chooses one of its 64 lines, then the token.

    A row index outside the batch, which only the device can see, draws token −1 and touches no row."""
    i_draw = tl.program_id(0)
    i_row = tl.load(rows_ptr + i_draw)
    if (i_row < 0) | (i_row >= B):
        tl.store(token_ptr + i_draw, i_row * 0 - 1)
        tl.store(logp_ptr + i_draw, float("nan"))
        return
    exclude = tl.load(exclude_ptr + i_draw) if HAS_EXCLUDE else -1
    alpha = tl.load(alpha_ptr + i_row)
    p_logits = logits_ptr + i_row * stride_row
    p_partial = partial_ptr + i_row * (FIRST_EXPONENT + E) * blocks
    o_block = tl.arange(0, BLOCKS)
    m, _, s = row_normaliser(p_partial, o_block, blocks)
    is_valid = (s == s) & (s > 0.0)

    LINE: tl.constexpr = 64
    LINES: tl.constexpr = BLOCK // LINE
    o_line = tl.arange(0, LINES)
    o_entry = tl.arange(0, LINE)
    o_tile = o_line[:, None] * LINE + o_entry[None, :]
    b_m = tl.load(p_partial + MAX * blocks + o_block, mask=o_block < blocks, other=float("-inf"))
    b_s = tl.load(p_partial + ALPHA_SUM * blocks + o_block, mask=o_block < blocks, other=0.0)
    if exclude >= 0:
        i_excluded = (exclude // BLOCK).to(tl.int32)
        b_z = load_logits(p_logits, i_excluded * BLOCK + o_tile, V, exclude)
        m_rest = tl.max(b_z)
        s_rest = tl.sum(tl.exp(alpha * (b_z - finite_or_zero(m_rest))))
        b_m = tl.where(o_block == i_excluded, m_rest, b_m)
        b_s = tl.where(o_block == i_excluded, s_rest, b_s)
    u_block, u_token = uniforms(tl.load(keys_ptr + i_draw), tl.load(positions_ptr + i_draw))
    b_mass = (b_s * tl.exp(alpha * (b_m - finite_or_zero(tl.max(b_m, axis=0))))).to(tl.float64)
    i_block, _ = inverse_cdf(b_mass, o_block, u_block * tl.sum(b_mass, axis=0), BLOCKS)
    is_left = i_block >= 0

    start = tl.maximum(i_block, 0) * BLOCK
    b_z = load_logits(p_logits, start + o_tile, V, exclude)
    m_chosen = finite_or_zero(tl.max(b_z))
    b_mass = tl.sum(tl.exp(alpha * (b_z - m_chosen)).to(tl.float64), axis=1)
    threshold = u_token * tl.sum(b_mass, axis=0)
    i_line, before = inverse_cdf(b_mass, o_line, threshold, LINES)
    start += tl.maximum(i_line, 0) * LINE
    b_z = load_logits(p_logits, start + o_entry, V, exclude)
    b_mass = tl.exp(alpha * (b_z - m_chosen)).to(tl.float64)
    i_entry, _ = inverse_cdf(b_mass, o_entry, threshold - before, LINE)
    logp = tl.sum(tl.where(o_entry == i_entry, b_z, 0.0), axis=0) - m - tl.log(s)

    is_drawn = is_valid & is_left
    tl.store(token_ptr + i_draw, tl.where(is_drawn, (start + i_entry).to(tl.int64), -1))
    tl.store(logp_ptr + i_draw, tl.where(is_drawn, logp, float("nan")))
    tl.atomic_or(status_ptr + i_row, EXHAUSTED, mask=is_valid & (is_left == 0))


class Partials(NamedTuple):
    """Partial sums of every block of every row."""

    sums: torch.Tensor  # (B, 4 + E, blocks) float32
    blocks: int
    constants: dict  # E, BLOCKS


@on_its_device
def block_statistics(logits, exponents, alpha=None, room=None):
    """Launch ``statistics_kernel``: one read of the logits."""
    logits = aligned_rows(logits)
    B, V = logits.shape
    E, blocks = exponents.shape[0], triton.cdiv(V, BLOCK)
    room = Room(logits.device) if room is None else room
    sums = room.empty((B, 4 + E, blocks), torch.float32)
    statistics_kernel[(B, blocks)](
        *(logits, logits.stride(0), V, exponents if alpha is None else alpha, exponents, sums),
        **dict(E=E, HAS_ALPHA=alpha is not None, BLOCK=BLOCK, num_warps=8),
    )
    return Partials(sums, blocks, dict(E=E, BLOCKS=triton.next_power_of_2(blocks)))


def aligned_rows(logits):
    """The logits, or a copy of them, whose rows start at multiples of 16 bytes: what ``statistics_kernel`` takes.

    One layout for all, because another width of loads would deal a block to the threads in another order, and give
    other bits. Rows of a multiple of 16 bytes, which those of a model's head usually are, are taken as they are.
    """
    unit = 16 // logits.element_size()
    if logits.data_ptr() % 16 == 0 and (logits.stride(0) % unit == 0 or logits.shape[0] == 1):
        return logits
    B, V = logits.shape
    rows = torch.empty((B, triton.cdiv(V, unit) * unit), dtype=logits.dtype, device=logits.device)[:, :V]
    return rows.copy_(logits)


def empty_statistics(B, E, device):
    """(logz (B, E), entropy (B,), status (B,)) to be written by a merge."""
    return (
        torch.empty((B, E), dtype=torch.float32, device=device),
        torch.empty(B, dtype=torch.float32, device=device),
        torch.empty(B, dtype=torch.int32, device=device),
    )


def workspace(logits, exponents):
    """Bytes that a call works in, where rows start at multiples of 16 bytes; others are copied first."""
    B, V = logits.shape
    return Room.bytes(((B, 4 + exponents.shape[0], triton.cdiv(V, BLOCK)), torch.float32))


@on_its_device
def sample_tokens(logits, alpha, exponents, rows, keys, positions, exclude=None, *, out=None, workspace=None):
    """Draws and row statistics; the contract is that of ``fastpower.kernels.sample_tokens``.

    logits (B, V) with last stride 1, alpha (B,), exponents (E,), rows / keys / positions / exclude (D,), all on one
    device; ``out`` and ``workspace`` as there. Arguments are trusted. Three launches, no
    synchronisation, capturable in a CUDA graph.
    """
    B, D, device = logits.shape[0], rows.shape[0], logits.device
    if out is None:
        token = torch.empty(D, dtype=torch.int64, device=device)
        logp = torch.empty(D, dtype=torch.float32, device=device)
        out = (token, logp, *empty_statistics(B, exponents.shape[0], device))
    token, logp, logz, entropy, status = out
    if B == 0:
        return TokenSamples(token, logp, logz, entropy, status)
    alpha, exponents = alpha.contiguous(), exponents.contiguous()
    partials = block_statistics(logits, exponents, alpha, Room(device, workspace, "sample_tokens"))
    merge_kernel[(B,)](
        *(partials.sums, partials.blocks, exponents, logz, entropy, status),
        **dict(partials.constants, NAN=NAN, MASKED=MASKED, num_warps=1),
    )
    if D > 0:
        draw_kernel[(D,)](
            *(logits, logits.stride(0), *logits.shape, alpha, partials.sums, partials.blocks),
            *(rows.contiguous(), keys.contiguous(), positions.contiguous()),
            rows if exclude is None else exclude.contiguous(),
            *(token, logp, status),
            **dict(partials.constants, HAS_EXCLUDE=exclude is not None, BLOCK=BLOCK, EXHAUSTED=EXHAUSTED, num_warps=8),
        )
    return TokenSamples(token, logp, logz, entropy, status)
