"""``resample`` of ``csrc/cpu/resample.cpp`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpower import _C

SCHEMES = {"systematic": 0, "stratified": 1, "multinomial": 2, "residual": 3}


def resample(log_weights: Tensor, uniforms: Tensor, *, scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """See ``fastpower.kernels.resample``; values are checked by the kernel."""
    log_weights, uniforms = log_weights.contiguous(), uniforms.contiguous()
    count, shape = log_weights.shape[-1], log_weights.shape[:-1]
    index = torch.empty(log_weights.shape, dtype=torch.int64)
    ess, log_mean = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
    _C.resample(
        log_weights.data_ptr(),
        uniforms.data_ptr(),
        ess.numel(),
        count,
        SCHEMES[scheme],
        index.data_ptr(),
        ess.data_ptr(),
        log_mean.data_ptr(),
    )
    return index, ess, log_mean
