"""Weights as GGUF files hold them: blocks of small integers with scales, multiplied without being unpacked to memory.

Formats and what they cost, in bits per weight: Q4_0 4.5, Q4_1 5, Q5_0 5.5, Q5_1 6, Q8_0 8.5 (32 weights share their
scales); Q4_K 4.5, Q5_K 5.5, Q6_K 6.6 (256 weights share what their groups' scales are multiples of). The formats are
ggml's; ``csrc/cpu/linear/quantised_formats.h`` says what their bytes mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastpower import _C
from fastpower.kernels.addresses import address, aligned_part, array_address, check_memory
from fastpower.kernels.arguments import check_tensor


class Format(NamedTuple):
    """One of ``FORMATS``."""

    name: str
    type: int  #: its number in GGUF files
    block: int  #: weights of a block: inputs come in multiples of it
    block_bytes: int


#: by name
FORMATS = {
    format.name: format
    for format in (
        Format("Q4_0", 2, 32, 18),
        Format("Q4_1", 3, 32, 20),
        Format("Q5_0", 6, 32, 22),
        Format("Q5_1", 7, 32, 24),
        Format("Q8_0", 8, 32, 34),
        Format("Q4_K", 12, 256, 144),
        Format("Q5_K", 13, 256, 176),
        Format("Q6_K", 14, 256, 210),
    )
}


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        ValueError: A name that is not in ``FORMATS``.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"format={name!r} is not one of {', '.join(FORMATS)}") from None


@dataclass(frozen=True, eq=False)
class QuantisedBlocks:
    """A weight (out, in) in blocks, for ``pack_linear``; ``blocks`` is not copied.

    Raises:
        ValueError: An unknown format, or blocks that are no whole rows of it.
    """

    blocks: torch.Tensor  #: (out, in / block · block_bytes) uint8 on the CPU
    format: str  #: a name in ``FORMATS``

    def __post_init__(self) -> None:
        format = format_of(self.format)
        check_tensor("QuantisedBlocks", "blocks", self.blocks, (torch.uint8,), ("out", "bytes"), torch.device("cpu"))
        check_memory("QuantisedBlocks", "blocks", self.blocks)
        out, size = self.blocks.shape
        if out == 0 or size == 0 or size % format.block_bytes:
            raise ValueError(
                f"QuantisedBlocks: blocks must have shape (out, n · {format.block_bytes}) for {format.name}, n ≥ 1, "
                f"got {tuple(self.blocks.shape)}"
            )

    @property
    def out_features(self) -> int:
        """Rows."""
        return self.blocks.shape[0]

    @property
    def in_features(self) -> int:
        """Weights of a row."""
        format = FORMATS[self.format]
        return self.blocks.shape[1] // format.block_bytes * format.block

    def dequantise(self) -> torch.Tensor:
        """The (out, in) weights in float32, equal to ``gguf.quants.dequantize`` bit for bit."""
        check_memory("QuantisedBlocks", "blocks", self.blocks)
        blocks = self.blocks.contiguous()
        out = torch.empty(self.out_features, self.in_features, dtype=torch.float32, device="cpu")
        type = FORMATS[self.format].type
        _C.dequantise(
            type, self.in_features, self.out_features, address(blocks, torch.uint8), address(out, torch.float32)
        )
        return out

    def row_addresses(self, order: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """Where rows begin in memory, in the order given. Valid while ``blocks`` lives."""
        if self.blocks.stride(1) != 1:
            raise ValueError("QuantisedBlocks: a row of blocks must be contiguous; pass blocks.contiguous()")
        rows = np.arange(self.out_features) if order is None else order
        return np.asarray(address(self.blocks, torch.uint8) + rows * self.blocks.stride(0), np.uint64)


class PanelMemory:
    """Memory for the panels of one model, side by side in large pages.

    A step reads all of them, and one address translation per 4 KiB would take a tenth of its time.
    """

    _CHUNK = 64 << 20
    _PAGE = 2 << 20

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, size: int) -> torch.Tensor:
        """(size,) uint8 that begins at a cache line; not initialised, and not resident before it is written."""
        whole = -(-size // 64) * 64
        if self._free.numel() < whole:
            chunk = torch.empty(max(whole, self._CHUNK) + self._PAGE, dtype=torch.uint8, device="cpu")
            self._free = aligned_part(chunk, self._PAGE)
            _C.ask_for_huge_pages(address(self._free, torch.uint8), self._free.numel())
        panels, self._free = self._free[:size], self._free[whole:]
        return panels


def pack_rows(
    format: Format, in_features: int, rows: NDArray[np.uint64], memory: PanelMemory | None = None
) -> torch.Tensor:
    """Panels of the rows that begin at these addresses."""
    rows = np.ascontiguousarray(rows)
    size = _C.quantised_bytes(format.type, in_features, len(rows))
    panels = aligned(size) if memory is None else memory.take(size)
    _C.pack_quantised(format.type, in_features, len(rows), array_address(rows, np.uint64), address(panels, torch.uint8))
    return panels


def aligned(size: int) -> torch.Tensor:
    """(size,) uint8 that begins at a cache line; not initialised."""
    memory = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
    return aligned_part(memory, 64)[:size]


#: rows that are quantised at a time: what is held besides the result is a few MB
_ROWS = 4096


def quantise(weight: torch.Tensor, format: str) -> QuantisedBlocks:
    """Round a float weight (out, in) to the nearest values of "Q8_0" or "Q4_0"; float32 inside.

    Each 32 neighbours of a row share a float16 scale d. Q8_0: d = max |w| / 127, so a weight is off by at most
    d / 2 = 0.4 % of the largest of its 32 (and half a unit of d's own rounding, 2⁻¹¹ of itself). Q4_0: d = w* / −8
    where w* is the entry of largest magnitude, so that 16 values −8 d … 7 d are used; off by at most d / 2, 6 % of the
    largest, and d (13 %) where an entry of opposite sign is as large. The roundings are those of ggml's reference.

    Raises:
        ValueError: Another format, an ``in`` that is no multiple of 32, or weights that are not finite.
    """
    if format not in ("Q8_0", "Q4_0"):
        raise ValueError(f"format={format!r} cannot be made here; only Q8_0 and Q4_0")
    check_tensor("quantise", "weight", weight, (torch.float32, torch.bfloat16, torch.float16), ("out", "in"))
    check_memory("quantise", "weight", weight)
    out, inputs = weight.shape
    if inputs % 32:
        raise ValueError(f"quantise: weight has {inputs} inputs; {format} takes multiples of 32")
    make = _q8_0 if format == "Q8_0" else _q4_0
    blocks = torch.empty(out, inputs // 32 * FORMATS[format].block_bytes, dtype=torch.uint8, device="cpu")
    for begin in range(0, out, _ROWS):
        rows = weight[begin : begin + _ROWS].detach().to(torch.float32).reshape(-1, 32)
        largest = rows.abs().amax()
        if not torch.isfinite(largest):
            raise ValueError("quantise: weight has entries that are not finite")
        blocks[begin : begin + _ROWS] = make(rows).reshape(-1, blocks.shape[1])
    return QuantisedBlocks(blocks, format)


def _q8_0(rows: torch.Tensor) -> torch.Tensor:
    d = rows.abs().amax(1, keepdim=True) / 127
    q = (rows * _inverse(d)).round().to(torch.int8)
    return torch.cat([d.to(torch.float16).view(torch.uint8), q.view(torch.uint8)], 1)


def _q4_0(rows: torch.Tensor) -> torch.Tensor:
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    d = largest / -8
    q = (rows * _inverse(d) + 8.5).floor().clamp(0, 15).to(torch.uint8)
    return torch.cat([d.to(torch.float16).view(torch.uint8), q[:, :16] | q[:, 16:] << 4], 1)


def _inverse(d: torch.Tensor) -> torch.Tensor:
    return torch.where(d == 0, torch.zeros((), dtype=d.dtype, device=d.device), 1 / d)


def same_format(weights: Sequence[QuantisedBlocks]) -> bool:
    """Whether they can be packed as one weight, rows after rows."""
    return len({(weight.format, weight.in_features) for weight in weights}) == 1
