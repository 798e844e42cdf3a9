"""The activation between a gated layer's two products: act(gate) · up, in one launch.

    SiLU(g) = g / (1 + e^−g)        GELU(g) ≈ g/2 · (1 + tanh(√(2/π) (g + 0.044715 g³)))        float32, rounded once

A row of the fused product is ``gate`` and ``up``, I numbers each; every number is read once and half as many written.
"""

import torch

import triton
import triton.language as tl

from .device import on_its_device

BLOCK = 1024


@triton.jit
def gated_activation_kernel(
    gate_up_ptr,  # (N, 2 I)
    out_ptr,  # (N, I) out
    I: tl.constexpr,  # noqa: E741
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, part of it)."""
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = o < I
    b_g = tl.load(gate_up_ptr + i_row * (2 * I) + o, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.load(gate_up_ptr + i_row * (2 * I) + I + o, mask=mask, other=0.0).to(tl.float32)
    b_x = b_g
    if GELU:
        b_x = 1.5957691216057308 * (b_g + 0.044715 * b_g * b_g * b_g)  # (1 + tanh y) / 2 is the sigmoid of 2 y
    b_y = b_g / (1.0 + tl.exp(-b_x)) * b_u
    tl.store(out_ptr + i_row * I + o, b_y.to(out_ptr.dtype.element_ty), mask=mask)


@on_its_device
def gated_activation(gate_up, *, gelu=False):
    """act(gate) · up (N, I) of ``gate_up`` (N, 2 I) contiguous: SiLU, or the tanh form of GELU. Arguments are
    trusted."""
    N, I = gate_up.shape[0], gate_up.shape[1] // 2  # noqa: E741
    out = torch.empty((N, I), dtype=gate_up.dtype, device=gate_up.device)
    if N > 0 and I > 0:
        gated_activation_kernel[(N, triton.cdiv(I, BLOCK))](
            *(gate_up, out), **dict(I=I, GELU=gelu, BLOCK=BLOCK, num_warps=4)
        )
    return out
