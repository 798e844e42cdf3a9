"""``pool_rows`` of ``csrc/cpu/sampling/pool_rows.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.cpu.sample_tokens import DTYPES


def pool_rows(logits: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.pool_rows``; values are checked by the kernel."""
    starts = starts.contiguous()
    (rows, vocab), groups = logits.shape, len(starts) - 1
    pooled = torch.empty(groups, vocab, dtype=torch.float32, device="cpu")
    log_mass = torch.empty(groups, dtype=torch.float32, device="cpu")
    status = torch.empty(groups, dtype=torch.int32, device="cpu")
    _C.pool_rows(
        address(logits, *DTYPES),
        DTYPES[logits.dtype],
        rows,
        vocab,
        logits.stride(0),
        address(starts, torch.int64),
        groups,
        address(pooled, torch.float32),
        address(log_mass, torch.float32),
        address(status, torch.int32),
    )
    return pooled, log_mass, status
