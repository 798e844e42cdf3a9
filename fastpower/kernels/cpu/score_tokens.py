"""``score_tokens`` of ``csrc/cpu/sampling/sample_tokens.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.cpu.sample_tokens import DTYPES


def score_tokens(logits: Tensor, tokens: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.score_tokens``; values are checked by the kernel."""
    batch, vocab = logits.shape
    tokens, exponents = tokens.contiguous(), exponents.contiguous()
    count = len(exponents)
    logp = torch.empty(batch, dtype=torch.float32, device="cpu")
    logz = torch.empty(batch, count, dtype=torch.float32, device="cpu")
    entropy = torch.empty(batch, dtype=torch.float32, device="cpu")
    status = torch.empty(batch, dtype=torch.int32, device="cpu")
    _C.score_tokens(
        address(logits, *DTYPES),
        DTYPES[logits.dtype],
        batch,
        vocab,
        logits.stride(0),
        address(tokens, torch.int64),
        address(exponents, torch.float32),
        count,
        address(logp, torch.float32),
        address(logz, torch.float32),
        address(entropy, torch.float32),
        address(status, torch.int32),
    )
    return logp, logz, entropy, status
