"""Launcher of csrc/cuda/sample_tokens.cu for given tokens: statistics without draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower.kernels.cuda import library
from fastpower.kernels.cuda.sample_tokens import logits_arguments, scratch


def score_tokens(logits: Tensor, tokens: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logp, logz, entropy, status): the contract is the façade's docstring.

    A token outside the vocabulary has logp NaN.
    """
    batch, count = logits.shape[0], exponents.shape[0]
    logp = exponents.new_empty(batch)
    logz = exponents.new_empty(batch, count)
    entropy = exponents.new_empty(batch)
    status = tokens.new_empty(batch, dtype=torch.int32)
    library.call(
        "fastpower_score_tokens",
        logits.device,
        *logits_arguments(logits),
        tokens.contiguous(),
        exponents.contiguous(),
        count,
        scratch(logits, count),
        logp,
        logz,
        entropy,
        status,
    )
    return logp, logz, entropy, status
