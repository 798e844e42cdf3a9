"""Products of a forward of our own: torch's on a device, packed and batch-invariant ones on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastpower.kernels import linear, pack_linear

Product = Callable[[Tensor], Tensor]


def product(modules: list[Any]) -> Product:
    """x → x (W₁; W₂; …)ᵀ + b of linear modules side by side, whose weights become views of one tensor."""
    weights, biases = [module.weight for module in modules], [module.bias for module in modules]
    if weights[0].device.type == "cpu":
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        return partial(_packed_product, pack_linear(torch.cat([w.detach() for w in weights]), bias))
    weight = weights[0].data if len(modules) == 1 else _side_by_side(weights)
    bias = None if biases[0] is None else biases[0].data if len(modules) == 1 else _side_by_side(biases)
    return partial(_product, weight, bias)


def _packed_product(packed: Any, x: Tensor) -> Tensor:
    return linear(x, packed)


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return nnf.linear(x, weight, bias)


def _side_by_side(parameters: list[Any]) -> Tensor:
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(joined, [len(p) for p in parameters]), strict=True):
        parameter.data = part
    return joined


def float32_product(head: Any) -> Product:
    """x → float32 logits of a language-model head, summed and left in float32 whatever the weights' dtype.

    A 16-bit logit of 16 … 32 is rounded to multiples of 0.125, which alpha multiplies. On the CPU a packed product; on
    a device torch's product with float32 output, where this torch has one, else its product rounded as before.
    """
    weight, bias = head.weight, head.bias
    if weight.device.type == "cpu":
        return partial(linear, packed=pack_linear(weight, bias), out_dtype=torch.float32)
    return partial(_float32_product, weight.data, None if bias is None else bias.data.float())


def _float32_product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    if weight.dtype == torch.float32 or not wide_output():
        y = nnf.linear(x, weight).float()
    else:
        y = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return y if bias is None else y + bias


def wide_output() -> bool:
    """Whether this torch multiplies 16-bit matrices into a float32 one (CUDA only)."""
    return hasattr(torch.ops.aten.mm, "dtype")
