"""Weights of ``linear``: packed once, in panels whose layout ``csrc/cpu/linear`` keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastpower import _C
from fastpower.kernels.addresses import address
from fastpower.kernels.arguments import check_tensor, whole_number
from fastpower.kernels.quantised import FORMATS, format_of


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """Weights of ``linear``. The layout of ``panels`` is private to ``csrc/cpu/linear/linear.h``."""

    panels: torch.Tensor  #: uint8, 64-byte aligned
    bias: torch.Tensor | None  #: (out_features,) float32
    in_features: int
    out_features: int
    dtype: torch.dtype  #: of the weights and of the rows: float32 or bfloat16; quantised: float32
    format: str | None = None  #: of quantised weights, a name in ``fastpower.kernels.quantised.FORMATS``

    def __post_init__(self) -> None:
        """Refuse panels that are no packed weight of these sizes: C++ believes them.

        Raises:
            TypeError: Another type or dtype.
            ValueError: Another size.
        """
        sizes = [whole_number(f"PackedLinear: {n}", getattr(self, n)) for n in ("in_features", "out_features")]
        if self.format is None:
            needed = _C.packed_linear_bytes(self.dtype == torch.bfloat16, *sizes)
        else:
            needed = _C.quantised_bytes(format_of(self.format).type, *sizes)
        check_tensor("PackedLinear", "panels", self.panels, (torch.uint8,), (needed,), torch.device("cpu"))
        if self.bias is not None:
            check_tensor("PackedLinear", "bias", self.bias, (torch.float32,), (sizes[1],), torch.device("cpu"))
        if address(self.panels, torch.uint8) % 64 or not self.panels.is_contiguous():
            raise ValueError("PackedLinear: panels must be contiguous and begin at a multiple of 64 bytes; pack again")

    def weight(self) -> torch.Tensor:
        """The (out_features, in_features) weight, unpacked: equal bits to what was packed (quantised: dequantised)."""
        size, panels = (self.out_features, self.in_features), address(self.panels, torch.uint8)
        if self.format is not None:
            out = torch.empty(size, dtype=torch.float32, device="cpu")
            _C.unpack_quantised(FORMATS[self.format].type, *size[::-1], panels, address(out, torch.float32))
            return out
        out = torch.empty(size, dtype=self.dtype, device="cpu")
        _C.unpack_linear(self.dtype == torch.bfloat16, *size[::-1], panels, address(out, self.dtype))
        return out
