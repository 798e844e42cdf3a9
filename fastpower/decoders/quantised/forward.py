"""The forward of ``csrc/cpu/decoder_forward.h`` on quantised weights, without a model of transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastpower import _C
from fastpower.decoders.quantised.weights import Layer, Weights
from fastpower.decoders.transformers.fused import FusedForward
from fastpower.kernels import PackedLinear
from fastpower.kernels.addresses import address
from fastpower.kernels.quantised import FORMATS


class QuantisedForward(FusedForward):
    """Called like ``FusedForward``; batch-invariant bit for bit.

    Rows between products are float32, rounded to 16 bits of block floating point where a product begins (``linear``).

    Args:
        dtype: Of queries, keys and values, float32 or bfloat16.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self.weights = weights
        self._hooks: list[Any] = []
        self._positions, self._version = 0, 0
        self._dtype = dtype
        self._logits = torch.empty(0, dtype=torch.float32, device="cpu")
        a = weights.architecture
        self.vocab_size = a.vocab
        description = {
            "bfloat16": dtype == torch.bfloat16,
            "quantised": True,
            "hidden": a.hidden,
            "q_heads": a.q_heads,
            "kv_heads": a.kv_heads,
            "head_dim": a.head_dim,
            "intermediate": a.intermediate,
            "vocab": a.vocab,
            "eps": a.eps,
            "scale": a.scale,
            "softcap": a.softcap,
            "embedding_scale": a.embedding_scale,
            "gelu": a.gelu,
            "embedding": _matrix(weights.embedding),
            "final_norm": address(weights.final_norm, torch.float32),
            "head": _matrix(weights.head),
            "ropes": len(weights.ropes),
        }
        layers = [_layer(layer, a.rope_of[i], a.window_of[i]) for i, layer in enumerate(weights.layers)]
        self._forward = _C.DecoderForward(description, layers)

    def _current_version(self) -> int:
        return self._version  # nobody else can write to these weights

    def _pack(self) -> None:
        raise NotImplementedError("quantised weights are packed once")

    def _grow_ropes(self, positions: int) -> None:
        if positions <= self._positions:
            return
        self._positions = max(1024, 2 ** math.ceil(math.log2(positions)))
        self._ropes = []
        for index, rope in enumerate(self.weights.ropes):
            cos, sin = (table.contiguous() for table in rope(self._positions))
            self._ropes.append((cos, sin))
            self._forward.set_rope(index, *(address(table, torch.float32) for table in (cos, sin)), self._positions)


def _layer(layer: Layer, rope: int, window: int) -> dict[str, Any]:
    names = ("input_norm", "attention_norm", "mlp_norm", "output_norm", "q_norm", "k_norm")
    norms = {name: getattr(layer, name) for name in names}
    return {
        "qkv": [_matrix(part) for part in layer.qkv],
        **{name: _matrix(getattr(layer, name)) for name in ("out", "gate", "up", "down")},
        **{name: None if norm is None else address(norm, torch.float32) for name, norm in norms.items()},
        "rope": rope,
        "window": window,
    }


def _matrix(matrix: PackedLinear | Tensor) -> Any:
    """The address of a plain matrix, or (format, in, out, panels, bias): False for float32 panels."""
    if isinstance(matrix, Tensor):
        return address(matrix, torch.float32)
    kind = False if matrix.format is None else FORMATS[matrix.format].type
    bias = 0 if matrix.bias is None else address(matrix.bias, torch.float32)
    return kind, matrix.in_features, matrix.out_features, address(matrix.panels, torch.uint8), bias
