"""``csrc/cpu/linear/linear.cpp``: panels of 32 output columns, one accumulator per output."""

from __future__ import annotations

import torch

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.packed_linear import PackedLinear
from fastpower.kernels.quantised import FORMATS, aligned


def pack(weight: torch.Tensor) -> torch.Tensor:
    out_features, in_features = weight.shape
    bfloat16 = weight.dtype == torch.bfloat16
    size = _C.packed_linear_bytes(bfloat16, in_features, out_features)
    panels = aligned(size)
    source = address(weight, torch.float32, torch.bfloat16)
    _C.pack_linear(bfloat16, in_features, out_features, source, weight.stride(0), address(panels, torch.uint8))
    return panels


def linear(x: torch.Tensor, packed: PackedLinear, out_dtype: torch.dtype) -> torch.Tensor:
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    y = torch.empty(x.shape[0], packed.out_features, dtype=out_dtype, device="cpu")
    weights = (
        packed.in_features,
        packed.out_features,
        address(packed.panels, torch.uint8),
        0 if packed.bias is None else address(packed.bias, torch.float32),
    )
    result = (x.shape[0], x.stride(0), address(y, out_dtype), y.stride(0), out_dtype == torch.bfloat16)
    if packed.format is None:
        _C.linear(packed.dtype == torch.bfloat16, *weights, address(x, packed.dtype), *result)
    else:
        kind, rows = FORMATS[packed.format].type, address(x, torch.float32, torch.bfloat16)
        _C.quantised_linear(kind, *weights, rows, x.dtype == torch.bfloat16, *result)
    return y
