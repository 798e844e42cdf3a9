"""Specification of ``add_rms_norm``."""

import torch


def _norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def add_rms_norm(residual, x, weight, *, eps, dtype, inner=None):
    """``residual`` (N, H) float32 gets ``x`` (N, H) added in place (None: nothing); returns its norm in ``dtype``.

    weight, inner (H,) float32; with ``inner`` x is normalised with that weight first. Float64 inside.
    """
    if x is not None:
        x = x.double()
        residual.copy_(residual.double() + (x if inner is None else _norm(x, inner, eps)))
    return _norm(residual.double(), weight, eps).to(torch.float32).to(dtype)
