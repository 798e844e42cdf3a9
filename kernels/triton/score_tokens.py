"""Statistics of logits rows for given tokens: ``sample_tokens`` without the draws, in two launches.

The block sums and their merge are those of ``sample_tokens`` (see there), so both give the same bits for a row:

    logp(v) = z_v − m − log s      logz_e = log s_e − e log s      entropy = log s − t / s

The row is read once, plus one element for the token. Nothing of the size of the logits is written: (4 + E) numbers
per 4096 logits.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import on_its_device
from .sample_tokens import MASKED, NAN, block_statistics, empty_statistics, merge_row


class TokenScores(NamedTuple):
    """Statistics of B rows with E exponents: see ``score_tokens``."""

    logp: torch.Tensor  # (B,) float32
    logz: torch.Tensor  # (B, E) float32
    entropy: torch.Tensor  # (B,) float32
    status: torch.Tensor  # (B,) int32


@triton.jit(
    do_not_specialize=[
        *("logits_ptr", "stride_row", "tokens_ptr", "partial_ptr", "blocks", "exponents_ptr"),
        *("logp_ptr", "logz_ptr", "entropy_ptr", "status_ptr"),
    ]
)
def score_kernel(
    logits_ptr,  # (B, V), stride (stride_row, 1)
    stride_row,
    tokens_ptr,  # (B,) int64
    partial_ptr,  # (B, 4 + E, blocks)
    blocks,
    exponents_ptr,
    logp_ptr,  # (B,) float32 out
    logz_ptr,  # (B, E) float32 out
    entropy_ptr,  # (B,) float32 out
    status_ptr,  # (B,) int32 out
    E: tl.constexpr,
    BLOCKS: tl.constexpr,
    NAN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Program (row): merges its blocks and looks its token up. 4 + E sums of a row precede each other by ``blocks``."""
    i_row = tl.program_id(0).to(tl.int64)
    p_partial = partial_ptr + i_row * (4 + E) * blocks
    m, log_s = merge_row(
        p_partial, i_row, blocks, exponents_ptr, logz_ptr, entropy_ptr, status_ptr, E, BLOCKS, NAN, MASKED
    )
    z = tl.load(logits_ptr + i_row * stride_row + tl.load(tokens_ptr + i_row)).to(tl.float32)
    tl.store(logp_ptr + i_row, z - m - log_s)


@on_its_device
def score_tokens(logits, tokens, exponents):
    """Statistics of given tokens; the contract is that of ``fastpower.kernels.score_tokens``.

    logits (B, V) with last stride 1, tokens (B,), exponents (E,), all on one device. Arguments are trusted.
    """
    B, device = logits.shape[0], logits.device
    logp = torch.empty(B, dtype=torch.float32, device=device)
    logz, entropy, status = empty_statistics(B, exponents.shape[0], device)
    if B > 0:
        exponents = exponents.contiguous()
        partials = block_statistics(logits, exponents)
        score_kernel[(B,)](
            *(logits, logits.stride(0), tokens.contiguous(), partials.sums, partials.blocks, exponents),
            *(logp, logz, entropy, status),
            **dict(partials.constants, NAN=NAN, MASKED=MASKED, num_warps=1),
        )
    return TokenScores(logp, logz, entropy, status)
