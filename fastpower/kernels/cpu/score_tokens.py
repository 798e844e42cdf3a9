"""``score_tokens`` of ``csrc/cpu/sampling/sample_tokens.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.cpu.sample_tokens import DTYPES


def score_tokens(logits: Tensor, tokens: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.score_tokens``; values are checked by the kernel."""
    batch, vocab = logits.shape
    tokens, exponents = tokens.contiguous(), exponents.contiguous()
    count = len(exponents)
    logp = torch.empty(batch)
    logz = torch.empty(batch, count)
    entropy = torch.empty(batch)
    status = torch.empty(batch, dtype=torch.int32)
    _C.score_tokens(
        logits.data_ptr(),
        DTYPES[logits.dtype],
        batch,
        vocab,
        logits.stride(0),
        tokens.data_ptr(),
        exponents.data_ptr(),
        count,
        logp.data_ptr(),
        logz.data_ptr(),
        entropy.data_ptr(),
        status.data_ptr(),
    )
    return logp, logz, entropy, status
