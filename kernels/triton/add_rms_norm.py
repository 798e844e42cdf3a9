"""Add a layer's output to the residual stream and normalise the sum for the next product, in one launch.

    r ← r + x          y = r / √(mean r² + ε) · w

The stream r is float32 and is read and written once; x and y have the model's dtype. With a norm of its own for x
(Gemma), x ← x / √(mean x² + ε) · u comes first. One program per row, all sums in float32 over a row held in registers:
a row's bits depend on that row alone.
"""

import torch

import triton
import triton.language as tl

from .device import on_its_device


@triton.jit(do_not_specialize=["eps"])
def add_rms_norm_kernel(
    residual_ptr,  # (N, H) float32, updated
    x_ptr,  # (N, H), unused without HAS_X
    inner_ptr,  # (H,) float32: weight of the norm of x, unused without HAS_INNER
    weight_ptr,  # (H,) float32
    out_ptr,  # (N, H) out
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two ≥ H
    HAS_X: tl.constexpr,
    HAS_INNER: tl.constexpr,
):
    """Program (row)."""
    i_row = tl.program_id(0).to(tl.int64) * H
    o = tl.arange(0, BLOCK)
    mask = o < H
    b_r = tl.load(residual_ptr + i_row + o, mask=mask, other=0.0)
    if HAS_X:
        b_x = tl.load(x_ptr + i_row + o, mask=mask, other=0.0).to(tl.float32)
        if HAS_INNER:
            scale = 1.0 / tl.sqrt_rn(tl.sum(b_x * b_x, axis=0) / H + eps)
            b_x = b_x * scale * tl.load(inner_ptr + o, mask=mask, other=0.0)
        b_r += b_x
        tl.store(residual_ptr + i_row + o, b_r, mask=mask)
    scale = 1.0 / tl.sqrt_rn(tl.sum(b_r * b_r, axis=0) / H + eps)
    b_y = b_r * scale * tl.load(weight_ptr + o, mask=mask, other=0.0)
    tl.store(out_ptr + i_row + o, b_y.to(out_ptr.dtype.element_ty), mask=mask)


@on_its_device
def add_rms_norm(residual, x, weight, *, eps, dtype, inner=None):
    """``residual`` (N, H) float32 gets ``x`` (N, H) added in place (None: nothing); returns its norm in ``dtype``.

    weight, inner (H,) float32; with ``inner`` x is normalised with that weight first. Contiguous; arguments are
    trusted.
    """
    N, H = residual.shape
    out = torch.empty((N, H), dtype=dtype, device=residual.device)
    if N > 0:
        block = triton.next_power_of_2(H)
        add_rms_norm_kernel[(N,)](
            *(residual, residual if x is None else x, weight if inner is None else inner, weight, out, eps),
            **dict(H=H, BLOCK=block, HAS_X=x is not None, HAS_INNER=inner is not None),
            num_warps=min(max(block // 1024, 1), 16),
        )
    return out
