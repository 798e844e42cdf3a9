"""``resample`` of ``csrc/cpu/resample.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C
from fastpower.kernels.addresses import address

SCHEMES = {"systematic": 0, "stratified": 1, "multinomial": 2, "residual": 3}


def resample(log_weights: Tensor, uniforms: Tensor, *, scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.resample``; values are checked by the kernel."""
    log_weights, uniforms = log_weights.contiguous(), uniforms.contiguous()
    count, shape = log_weights.shape[-1], log_weights.shape[:-1]
    index = torch.empty(log_weights.shape, dtype=torch.int64, device="cpu")
    ess = torch.empty(shape, dtype=torch.float64, device="cpu")
    log_mean = torch.empty(shape, dtype=torch.float64, device="cpu")
    _C.resample(
        address(log_weights, torch.float64),
        address(uniforms, torch.float64),
        ess.numel(),
        count,
        SCHEMES[scheme],
        address(index, torch.int64),
        address(ess, torch.float64),
        address(log_mean, torch.float64),
    )
    return index, ess, log_mean
