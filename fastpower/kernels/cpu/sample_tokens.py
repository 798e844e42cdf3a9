"""``sample_tokens`` of ``csrc/cpu/sampling/sample_tokens.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.sample_tokens``; values are checked by the kernel."""
    batch, vocab = logits.shape
    alpha, exponents = alpha.contiguous(), exponents.contiguous()
    rows, keys, positions = rows.contiguous(), keys.contiguous(), positions.contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    (draws,), (count,) = rows.shape, exponents.shape
    token = torch.empty_like(rows)
    logp = torch.empty(draws)
    logz = torch.empty(batch, count)
    entropy = torch.empty_like(alpha)
    status = torch.empty(batch, dtype=torch.int32)
    _C.sample_tokens(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        batch,
        vocab,
        logits.stride(0),
        alpha.data_ptr(),
        exponents.data_ptr(),
        count,
        draws,
        rows.data_ptr(),
        keys.data_ptr(),
        positions.data_ptr(),
        0 if exclude is None else exclude.data_ptr(),
        token.data_ptr(),
        logp.data_ptr(),
        logz.data_ptr(),
        entropy.data_ptr(),
        status.data_ptr(),
    )
    return token, logp, logz, entropy, status
