"""y = x Wᵀ + b, accumulated in float64 and rounded once."""

from __future__ import annotations

import torch


def linear(x, packed, out_dtype):
    y = x.to(torch.float64) @ packed.weight().to(torch.float64).T
    if packed.bias is not None:
        y += packed.bias.to(torch.float64)
    return y.to(out_dtype)
