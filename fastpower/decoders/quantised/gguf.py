"""Weights of a GGUF file, packed as they are: the bytes of each matrix in another order, nothing rounded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpower.decoders.quantised.weights import Layer, Rope, Weights, rope_of
from fastpower.kernels import PackedLinear, pack_linear
from fastpower.kernels.quantised import FORMATS, PanelMemory, pack_rows
from fastpower.models.gguf import Architecture, GGUFFile, Undescribed

_FLOATS = {"F32", "F16", "BF16"}


def refuse_formats(file: GGUFFile) -> None:
    """Refuse a file whose matrices ``linear`` does not take.

    Raises:
        Undescribed: One has another format, or none of them is quantised.
    """
    matrices = [entry for entry in file.tensors.values() if len(entry.shape) == 2]
    for entry in matrices:
        if entry.type not in _FLOATS and entry.type not in FORMATS:
            raise Undescribed(f"its tensor {entry.name!r} is {entry.type}, not one of {', '.join(FORMATS)}")
        if entry.shape[1] % 32:
            raise Undescribed(f"its tensor {entry.name!r} has rows of {entry.shape[1]}, no multiple of 32")
    if not any(entry.type in FORMATS for entry in matrices):
        raise Undescribed("its weights are not quantised")


def weights_of(file: GGUFFile, architecture: Architecture) -> Weights:
    """Pack every matrix of the file.

    Its pages are given back one tensor after the other, so that no more memory is held than the panels and one tensor.
    """
    packer = _Packer(file, architecture)
    embedding = packer.embedding()
    if "output.weight" in file.tensors:
        head = packer.linear(["output.weight"])[0]
    else:
        head = embedding if isinstance(embedding, PackedLinear) else pack_linear(embedding)
    weights = Weights(architecture, embedding, head, packer.vector("output_norm.weight"), packer.ropes())
    weights.layers = [packer.layer(i) for i in range(architecture.layers)]
    return weights


class _Packer:
    def __init__(self, file: GGUFFile, architecture: Architecture) -> None:
        self._file, self._architecture, self._memory = file, architecture, PanelMemory()

    def layer(self, i: int) -> Layer:
        a, at = self._architecture, f"blk.{i}."
        biased = f"{at}attn_q.bias" in self._file.tensors
        orders = [self._order(a.q_heads), self._order(a.kv_heads), None] if a.interleaved else None
        names = [f"{at}attn_{part}.weight" for part in ("q", "k", "v")]
        biases = [f"{at}attn_{part}.bias" for part in ("q", "k", "v")] if biased else None
        layer = Layer(
            qkv=self.linear(names, biases, orders),
            out=self.linear([f"{at}attn_output.weight"])[0],
            gate=self.linear([f"{at}ffn_gate.weight"])[0],
            up=self.linear([f"{at}ffn_up.weight"])[0],
            down=self.linear([f"{at}ffn_down.weight"])[0],
            input_norm=self.vector(f"{at}attn_norm.weight"),
            mlp_norm=self.vector(f"{at}ffn_norm.weight"),
        )
        if a.four_norms:
            layer.attention_norm = self.vector(f"{at}post_attention_norm.weight")
            layer.output_norm = self.vector(f"{at}post_ffw_norm.weight")
        if f"{at}attn_q_norm.weight" in self._file.tensors:
            layer.q_norm = self.vector(f"{at}attn_q_norm.weight")
            layer.k_norm = self.vector(f"{at}attn_k_norm.weight")
        return layer

    def vector(self, name: str) -> Tensor:
        return torch.from_numpy(self._file.floats(name))

    def embedding(self) -> PackedLinear | Tensor:
        name = "token_embd.weight"
        return self.vector(name) if self._file.tensors[name].type in _FLOATS else self.linear([name])[0]

    def linear(
        self,
        names: list[str],
        biases: list[str] | None = None,
        orders: list[NDArray[np.int64] | None] | None = None,
    ) -> list[PackedLinear]:
        """The matrices as one if they have one format, else one each.

        Args:
            names: Of the tensors.
            biases: Names likewise, if there are any.
            orders: Of the rows of each.
        """
        orders = orders or [None] * len(names)
        plain = [self.vector(name) for name in biases or ()]
        bias = [one if order is None else one[order] for one, order in zip(plain, orders, strict=False)]
        if len({self._file.tensors[name].type for name in names}) == 1:
            return [self._pack(names, torch.cat(bias) if bias else None, orders)]
        return [
            self._pack([name], bias[i] if bias else None, [order])
            for i, (name, order) in enumerate(zip(names, orders, strict=True))
        ]

    def _pack(self, names: list[str], bias: Tensor | None, orders: list[NDArray[np.int64] | None]) -> PackedLinear:
        kind = self._file.tensors[names[0]].type
        if kind in _FLOATS:
            plain = [self._file.floats(name) for name in names]
            rows = [one if order is None else one[order] for one, order in zip(plain, orders, strict=True)]
            packed = pack_linear(torch.from_numpy(np.concatenate(rows)), bias)
        else:
            inputs = self._file.tensors[names[0]].shape[1]
            data = [self._file.data(name) for name in names]
            addresses = [_addresses(one, order) for one, order in zip(data, orders, strict=True)]
            panels = pack_rows(FORMATS[kind], inputs, np.concatenate(addresses), self._memory)
            packed = PackedLinear(panels, bias, inputs, sum(map(len, addresses)), torch.float32, kind)
            del data
        for name in names:
            self._file.release(name)
        return packed

    def _order(self, heads: int) -> NDArray[np.int64]:
        """Rows of q or k of a llama file, which stand in pairs (2 i, 2 i + 1) of a head, as its two halves."""
        dim = self._architecture.head_dim
        pairs = np.arange(dim).reshape(dim // 2, 2).T.reshape(-1)
        return (np.arange(heads)[:, None] * dim + pairs).reshape(-1)

    def ropes(self) -> list[Rope]:
        a = self._architecture
        exponents = torch.arange(0, a.head_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / a.head_dim
        inverse = [1.0 / (rope.base**exponents) / rope.factor for rope in a.ropes]
        if "rope_freqs.weight" in self._file.tensors:
            inverse[0] = inverse[0] / self.vector("rope_freqs.weight")
        return [rope_of(one) for one in inverse]


def _addresses(data: NDArray[np.uint8], order: NDArray[np.int64] | None) -> NDArray[np.uint64]:
    rows = np.arange(len(data)) if order is None else order
    return np.asarray(data.ctypes.data + rows * data.strides[0], np.uint64)
