"""Specification of ``gated_activation``."""

import torch
import torch.nn.functional as nnf


def gated_activation(gate_up, *, gelu=False):
    """act(gate) · up (N, I) of ``gate_up`` (N, 2 I): SiLU, or the tanh form of GELU. Float64 inside."""
    gate, up = gate_up.double().chunk(2, -1)
    value = (nnf.gelu(gate, approximate="tanh") if gelu else nnf.silu(gate)) * up
    return value.to(torch.float32).to(gate_up.dtype)
