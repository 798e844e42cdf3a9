"""Matrix product with weights packed once: read bandwidth for few rows, and batch-invariant."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastpower.kernels.arguments import check_tensor
from fastpower.kernels.dispatch import compiling, register, resolve

_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Weights of ``linear``. The layout of ``panels`` is private to ``csrc/cpu/linear/linear.h``."""

    panels: torch.Tensor  #: uint8, 64-byte aligned
    bias: torch.Tensor | None  #: (out_features,) float32
    in_features: int
    out_features: int
    dtype: torch.dtype  #: of the weights and of the rows: float32 or bfloat16

    def weight(self) -> torch.Tensor:
        """The (out_features, in_features) weight, unpacked: equal bits to what was packed."""
        from fastpower.kernels.cpu.linear import unpack

        return unpack(self)


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
    """Pack ``weight`` (out, in), float32 or bfloat16 on the CPU, and ``bias`` (out,) for ``linear``. Copies both.

    Raises TypeError for another dtype, ValueError for a shape that does not fit or an empty weight.
    """
    check_tensor("pack_linear", "weight", weight, _DTYPES, ("out", "in"))
    if weight.device.type != "cpu":
        raise ValueError(f"pack_linear: weight is on {weight.device}; the packed product runs on the CPU only")
    out_features, in_features = weight.shape
    if out_features == 0 or in_features == 0:
        raise ValueError(f"pack_linear: weight must not be empty, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_tensor("pack_linear", "bias", bias, (*_DTYPES, torch.float16), (out_features,), weight.device)
        bias = bias.detach().to(torch.float32, copy=True).contiguous()
    from fastpower.kernels.cpu.linear import pack

    weight = weight.detach()
    panels = pack(weight if weight.stride(1) == 1 or in_features == 1 else weight.contiguous())
    return PackedLinear(panels, bias, in_features, out_features, weight.dtype)


def linear(
    x: torch.Tensor, packed: PackedLinear, *, out_dtype: torch.dtype | None = None, backend: str = "auto"
) -> torch.Tensor:
    """``x`` (…, in) of the weights' dtype → (…, out) of ``out_dtype`` (default: the same): x Wᵀ + b.

    Accumulated in float32 (float64 in the reference), the bias added in float32, rounded once. Batch-invariant on
    ``cpu``: each output is summed over the inputs in one fixed order, so a row's bits do not depend on the other rows,
    its index, or the number of threads. No gradient.

    Raises TypeError for x or out_dtype of another dtype, ValueError if the last dimension is not ``in_features``.
    """
    if not isinstance(packed, PackedLinear):
        raise TypeError(f"linear: packed must come from pack_linear, got {type(packed).__name__}")
    if out_dtype is None:
        out_dtype = packed.dtype
    elif out_dtype not in _DTYPES:
        raise TypeError(f"linear: out_dtype must be float32 or bfloat16, got {out_dtype}")
    rows = x.reshape(-1, x.shape[-1]) if isinstance(x, torch.Tensor) and x.ndim not in (0, 2) else x
    check_tensor("linear", "x", rows, (packed.dtype,), ("rows", packed.in_features), packed.panels.device)
    if compiling():
        y = _operator(rows, packed.panels, packed.bias, packed.out_features, packed.dtype, out_dtype)
    else:
        y = resolve("linear", backend, rows.device)(rows, packed, out_dtype)
    result: torch.Tensor = y if x.ndim == 2 else y.reshape(*x.shape[:-1], packed.out_features)
    return result


def _implementation(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    packed = PackedLinear(panels, bias, x.shape[1], out_features, dtype)
    y: torch.Tensor = resolve("linear", "auto", x.device)(x, packed, out_dtype)
    return y


def _fake(
    x: torch.Tensor,
    panels: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], out_features, dtype=out_dtype)


_operator = register(
    "linear(Tensor x, Tensor panels, Tensor? bias, int out_features, ScalarType dtype, ScalarType out_dtype) -> Tensor",
    _implementation,
    _fake,
)
