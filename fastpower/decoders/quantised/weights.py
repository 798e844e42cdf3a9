"""The weights of one model as the fused forward wants them, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastpower.kernels import PackedLinear
from fastpower.models.gguf.architecture import Architecture

#: positions → cos and sin, (positions, head_dim / 2) float32 each
Rope = Callable[[int], tuple[Tensor, Tensor]]


@dataclass
class Layer:
    """Matrices and norms (float32) of a layer; see ``csrc/cpu/decoder_forward.h``."""

    qkv: list[PackedLinear]  #: one product for all three, or one each
    out: PackedLinear
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear
    input_norm: Tensor
    mlp_norm: Tensor
    attention_norm: Tensor | None = None
    output_norm: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass
class Weights:
    """A whole model.

    Attributes:
        embedding: Quantised, or (vocab, hidden) float32.
        head: It may be the same matrix.
    """

    architecture: Architecture
    embedding: PackedLinear | Tensor
    head: PackedLinear
    final_norm: Tensor
    ropes: list[Rope]
    layers: list[Layer] = field(default_factory=list)

    def matrices(self) -> list[PackedLinear]:
        """Every matrix that a step multiplies by."""
        layers = [matrix for one in self.layers for matrix in (*one.qkv, one.out, one.gate, one.up, one.down)]
        return [*layers, self.head]

    @property
    def step_bytes(self) -> int:
        """Bytes that every step reads: all matrices; of the embedding only rows are looked up."""
        return sum(matrix.panels.numel() for matrix in self.matrices())

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices, the embedding's if it is not the head."""
        own = self.embedding.panels if isinstance(self.embedding, PackedLinear) else self.embedding
        return self.step_bytes + (0 if own is self.head.panels else own.nbytes)

    @property
    def formats(self) -> dict[str, int]:
        """Matrices of each format, "float32" for those that are not quantised."""
        counts: dict[str, int] = {}
        for matrix in self.matrices():
            name = matrix.format or "float32"
            counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))


def rope_of(inverse_frequencies: Tensor) -> Rope:
    """Rotation by position · frequency, float32."""

    def tables(positions: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(positions, dtype=torch.float32, device="cpu")[:, None] * inverse_frequencies[None]
        return angles.cos(), angles.sin()

    return tables
