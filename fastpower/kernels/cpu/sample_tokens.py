"""``sample_tokens`` of ``csrc/cpu/sampling/sample_tokens.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.addresses import address

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
    *,
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.sample_tokens``; values are checked by the kernel, which needs no ``workspace``."""
    batch, vocab = logits.shape
    alpha, exponents = alpha.contiguous(), exponents.contiguous()
    rows, keys, positions = rows.contiguous(), keys.contiguous(), positions.contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    (draws,), (count,) = rows.shape, exponents.shape
    if out is None:
        out = (
            torch.empty_like(rows),
            torch.empty(draws, dtype=torch.float32, device="cpu"),
            torch.empty(batch, count, dtype=torch.float32, device="cpu"),
            torch.empty_like(alpha),
            torch.empty(batch, dtype=torch.int32, device="cpu"),
        )
    token, logp, logz, entropy, status = out
    _C.sample_tokens(
        address(logits, *DTYPES),
        DTYPES[logits.dtype],
        batch,
        vocab,
        logits.stride(0),
        address(alpha, torch.float32),
        address(exponents, torch.float32),
        count,
        draws,
        address(rows, torch.int64),
        address(keys, torch.int64),
        address(positions, torch.int64),
        0 if exclude is None else address(exclude, torch.int64),
        address(token, torch.int64),
        address(logp, torch.float32),
        address(logz, torch.float32),
        address(entropy, torch.float32),
        address(status, torch.int32),
    )
    return token, logp, logz, entropy, status
