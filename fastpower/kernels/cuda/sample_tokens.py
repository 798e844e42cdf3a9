"""Launcher of csrc/cuda/sample_tokens.cu: draws and statistics of logits rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower.kernels.cuda import library


def sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None = None,
    *,
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(token, logp, logz, entropy, status): the contract is the façade's docstring. No host synchronisation.

    A row index outside the batch draws token -1; an excluded token outside the vocabulary excludes nothing.
    """
    batch, count = logits.shape[0], exponents.shape[0]
    if out is None:
        out = (
            rows.new_empty(rows.shape),
            alpha.new_empty(rows.shape),
            alpha.new_empty(batch, count),
            alpha.new_empty(batch),
            rows.new_empty(batch, dtype=torch.int32),
        )
    token, logp, logz, entropy, status = out
    library.call(
        "fastpower_sample_tokens",
        logits.device,
        *logits_arguments(logits),
        alpha.contiguous(),
        exponents.contiguous(),
        count,
        rows.contiguous(),
        keys.contiguous(),
        positions.contiguous(),
        None if exclude is None else exclude.contiguous(),
        rows.shape[0],
        scratch(logits, count, workspace),
        token,
        logp,
        logz,
        entropy,
        status,
    )
    return token, logp, logz, entropy, status


def logits_arguments(logits: Tensor) -> tuple[Tensor, int, int, int, int]:
    """Address, dtype code, rows, vocabulary and row stride."""
    return logits, library.DTYPES[logits.dtype], *logits.shape, logits.stride(0)


def workspace(logits: Tensor, exponents: Tensor) -> int:
    """Bytes that a call works in."""
    floats: int = library.load().fastpower_sample_scratch(*logits.shape, exponents.shape[0])
    return 4 * floats


def scratch(logits: Tensor, exponents: int, workspace: Tensor | None = None) -> Tensor:
    """Room for the partial sums of every (row, block); uninitialised. ValueError if the caller's is too small."""
    size = library.load().fastpower_sample_scratch(*logits.shape, exponents)
    if workspace is not None:
        return library.floats_of("sample_tokens", workspace, size)
    return torch.empty(size, dtype=torch.float32, device=logits.device)
