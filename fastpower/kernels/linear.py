"""Matrix product with weights packed once: read bandwidth for few rows, and batch-invariant."""

from __future__ import annotations

import torch

from fastpower.kernels.addresses import check_memory
from fastpower.kernels.arguments import check_tensor
from fastpower.kernels.contracts import LINEAR
from fastpower.kernels.dispatch import compiling, resolve
from fastpower.kernels.packed_linear import PackedLinear
from fastpower.kernels.quantised import FORMATS, PanelMemory, QuantisedBlocks, pack_rows

_DTYPES = (torch.float32, torch.bfloat16)


def pack_linear(
    weight: torch.Tensor | QuantisedBlocks, bias: torch.Tensor | None = None, *, memory: PanelMemory | None = None
) -> PackedLinear:
    """Pack a weight, and a bias, for ``linear``. Copies both.

    Quantised weights stay as small as they are, their numbers exactly as given.

    Args:
        weight: (out, in), float32 or bfloat16 on the CPU, or quantised.
        bias: (out,), float32, bfloat16 or float16, on the CPU.
        memory: Where the panels of quantised weights are put, beside those of the model's other weights.

    Raises:
        TypeError: Another dtype.
        ValueError: A shape that does not fit, or an empty weight.
    """
    if isinstance(weight, QuantisedBlocks):
        return _pack_quantised(weight, bias, memory)
    check_tensor("pack_linear", "weight", weight, _DTYPES, ("out", "in"))
    if weight.device.type != "cpu":
        raise ValueError(f"pack_linear: weight is on {weight.device}; the packed product runs on the CPU only")
    out_features, in_features = weight.shape
    if out_features == 0 or in_features == 0:
        raise ValueError(f"pack_linear: weight must not be empty, got shape {tuple(weight.shape)}")
    check_memory("pack_linear", "weight", weight)
    bias = _copied(bias, out_features)
    from fastpower.kernels.cpu.linear import pack

    weight = weight.detach()
    panels = pack(weight if weight.stride(1) == 1 or in_features == 1 else weight.contiguous())
    return PackedLinear(panels, bias, in_features, out_features, weight.dtype)


def _pack_quantised(weight: QuantisedBlocks, bias: torch.Tensor | None, memory: PanelMemory | None) -> PackedLinear:
    inputs, outputs = weight.in_features, weight.out_features
    bias = _copied(bias, outputs)
    check_memory("pack_linear", "blocks", weight.blocks)
    blocks = weight if weight.blocks.stride(1) == 1 else QuantisedBlocks(weight.blocks.contiguous(), weight.format)
    panels = pack_rows(FORMATS[weight.format], inputs, blocks.row_addresses(), memory)
    return PackedLinear(panels, bias, inputs, outputs, torch.float32, weight.format)


def _copied(bias: torch.Tensor | None, out_features: int) -> torch.Tensor | None:
    """The bias in float32, as nobody else's."""
    if bias is None:
        return None
    check_tensor("pack_linear", "bias", bias, (*_DTYPES, torch.float16), (out_features,), torch.device("cpu"))
    check_memory("pack_linear", "bias", bias)
    return bias.detach().to(torch.float32, copy=True).contiguous()


def linear(
    x: torch.Tensor, packed: PackedLinear, *, out_dtype: torch.dtype | None = None, backend: str = "auto"
) -> torch.Tensor:
    """x Wᵀ + b.

    Accumulated in float32 (float64 in the reference), the bias added in float32, rounded once. Batch-invariant on
    ``cpu``: each output is summed over the inputs in one fixed order, so a row's bits do not depend on the other rows,
    its index, or the number of threads. No gradient.

    Quantised weights take x in float32 or bfloat16 and round it to 16 bits of block floating point: by at most 2⁻¹⁶ of
    the largest of each 32 neighbours of a row. Sums over 32 inputs are then exact, and each is scaled and added in
    float32. A row whose 32 neighbours include an infinity or NaN gives NaN.

    Args:
        x: (…, in) of the weights' dtype.
        packed: What ``pack_linear`` made.
        out_dtype: Of the result; default: that of x.
        backend: See ``fastpower.kernels.backends``.

    Returns:
        (…, out) of ``out_dtype``.

    Raises:
        TypeError: x or out_dtype of another dtype.
        ValueError: The last dimension is not ``in_features``.
    """
    if not isinstance(packed, PackedLinear):
        raise TypeError(f"linear: packed must come from pack_linear, got {type(packed).__name__}")
    dtypes = (packed.dtype,) if packed.format is None else _DTYPES
    if out_dtype is None:
        out_dtype = packed.dtype if getattr(x, "dtype", None) not in dtypes else x.dtype
    elif out_dtype not in _DTYPES:
        raise TypeError(f"linear: out_dtype must be float32 or bfloat16, got {out_dtype}")
    if isinstance(x, torch.Tensor) and not compiling():
        check_memory("linear", "x", x)
    rows = x.reshape(-1, x.shape[-1]) if isinstance(x, torch.Tensor) and x.ndim not in (0, 2) else x
    check_tensor("linear", "x", rows, dtypes, ("rows", packed.in_features), packed.panels.device)
    if compiling():
        y = _operator(rows, packed.panels, packed.bias, packed.out_features, packed.dtype, out_dtype, packed.format)
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
    format: str | None = None,
) -> torch.Tensor:
    packed = PackedLinear(panels, bias, x.shape[1], out_features, dtype, format)
    y: torch.Tensor = resolve("linear", "auto", x.device)(x, packed, out_dtype)
    return y


_operator = LINEAR.register(_implementation)
