"""Llama-shaped models on a device: a forward of our own, some ten launches a layer and no host in between.

The twin of ``fused.py`` for the architectures that it takes, by the same ``why_not``. Per layer: residual and norm, the
fused product for queries, keys and values, rotation and cache slots, attention (one launch, or two for contexts beyond
one split), the output product, residual and norm, the fused product of gate and up, the activation, the product down.
The residual stream is float32. Products are torch's, and so not batch-invariant on a GPU; logits are float32 there too.

On the CPU the same code runs on the specifications of the kernels and on packed products, which are batch-invariant:
that is how it is tested, not what a CPU should run.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from fastpower.decoders.transfer import to_device
from fastpower.decoders.transformers.attention import attention_options
from fastpower.decoders.transformers.fused import (
    gelu,
    layer_norms,
    norm_weight,
    rope_kinds,
    rope_table,
    why_not,
    window,
)
from fastpower.decoders.transformers.packing import PackedBatch
from fastpower.decoders.transformers.products import Product, float32_product, product
from fastpower.errors import UnsupportedModel
from fastpower.kernels.dispatch import pick, resolve


class Tokens(NamedTuple):
    """A packed ragged batch on the device; N tokens of S sequences."""

    ids: Tensor  #: (N,) int64
    positions: Tensor  #: (N,) int64
    slots: Tensor  #: (N,) int64, negative ones write nothing
    page_table: Tensor  #: (S, max_pages) int32
    starts: Tensor  #: (S+1,) int32
    lengths: Tensor  #: (S,) int32, new tokens included
    shared: tuple[Tensor, Tensor] | None = None


class _Layer(NamedTuple):
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    norms: dict[str, Tensor | None]
    rope: int
    window: int


class DeviceForward:
    """Weights of one model, fused by views, and its forward over a paged cache.

    The weights of q, k, v and of gate, up become parts of one tensor each (same values, same parameters; no second
    copy), so a weight that is written to by torch's operations is seen at once.
    """

    def __init__(self, model: Any, backend: str = "auto") -> None:
        """Use ``of``: this assumes that the model is one that can be taken."""
        body, attention, config = model.model, model.model.layers[0].self_attn, model.config
        self._model = model
        self.device: torch.device = body.embed_tokens.weight.device
        self.dtype: torch.dtype = body.embed_tokens.weight.dtype
        self._hooks = [h for module in model.modules() for h in (module._forward_hooks, module._forward_pre_hooks)]
        chosen = pick(backend, self.device.type)
        own = "reference" if chosen == "cpu" else chosen  # the CPU has no kernels of these: their specification runs
        self._add_norm = resolve("add_rms_norm", own, self.device)
        self._rotary = resolve("rotary_append", own, self.device)
        self._gate = resolve("gated_activation", own, self.device)
        self._attention = resolve("paged_attention", backend, self.device)
        self._backend = chosen
        self._embedding = body.embed_tokens.weight
        scale = getattr(body.embed_tokens, "embed_scale", None)
        self._embedding_scale = 1.0 if scale is None else float(scale.to(self.dtype))
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._eps, self._gelu = attention.head_dim, config.rms_norm_eps, gelu(config)
        self._score = {
            "scale": float(attention.scaling),
            "softcap": float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        }
        self._kinds = rope_kinds(model)
        with torch.inference_mode(False), torch.no_grad():
            self._layers = [self._layer(layer) for layer in body.layers]
            self._final_norm = norm_weight(body.norm)
            self._head = float32_product(model.lm_head)
        self._windows = any(layer.window for layer in self._layers)
        self._positions, self._ropes = 0, list[tuple[Tensor, Tensor]]()

    @classmethod
    def of(cls, model: Any, backend: str = "auto") -> DeviceForward | None:
        """The forward of ``model``, or None if ``why_not`` has a reason against it."""
        device = model.get_input_embeddings().weight.device.type
        return cls(model, backend) if why_not(model, device) is None else None

    @property
    def hooked(self) -> bool:
        """Whether a module of the model has got a forward hook meanwhile, which only its own forward would call."""
        return any(self._hooks)

    def grow(self, positions: int) -> bool:
        """Rotary tables of at least so many positions; True if they moved (a captured graph reads the old ones)."""
        if positions <= self._positions:
            return False
        self._positions = max(1024, 2 ** math.ceil(math.log2(positions)))
        tables = [rope_table(self._model.model.rotary_emb, self._positions, kind) for kind in self._kinds]
        half = self._head_dim // 2
        self._ropes = [(cos[:, :half].contiguous(), sin[:, :half].contiguous()) for cos, sin in tables]
        return True

    def upload(self, batch: PackedBatch, keep: NDArray[np.int64] | None = None) -> tuple[Tokens, Tensor | None]:
        """A batch on the device in one upload, and which of its tokens are kept (None: all); tables long enough."""
        self.grow(int(batch.positions.max()) + 1)
        arrays: list[NDArray[Any]] = [batch.tokens, batch.positions, batch.slots]
        arrays += [batch.page_table, batch.starts, batch.lengths, *(batch.shared or ())]
        arrays += [] if keep is None else [keep]
        parts = to_device(arrays, self.device)
        ids, positions, slots, table, starts, lengths = parts[:6]
        groups = None if batch.shared is None else (parts[6], parts[7])
        return Tokens(ids, positions, slots, table, starts, lengths, groups), None if keep is None else parts[-1]

    def hidden(self, k: Tensor, v: Tensor, tokens: Tokens, keep: Tensor | None = None) -> Tensor:
        """Append K/V of the tokens and compute their normalised hidden states. ``grow`` comes first.

        Args:
            k: (layers, pages, page_size, kv_heads, head_dim); written.
            v: Like ``k``.
            tokens: The rows of the step.
            keep: Indices of the tokens whose states are wanted; None: all.

        Returns:
            (len(keep), hidden).
        """
        norm = partial(self._add_norm, eps=self._eps, dtype=self.dtype)
        plain, windowed = attention_options(
            self._backend, tokens.starts, tokens.lengths, tokens.shared, queries=len(tokens.ids), dtype=self.dtype,
            group=self._heads // self._kv_heads, head_dim=self._head_dim, page_size=k.shape[2],
            max_pages=tokens.page_table.shape[1], windows=self._windows,
        )  # fmt: skip
        residual = nnf.embedding(tokens.ids, self._embedding).float()
        if self._embedding_scale != 1.0:
            residual *= self._embedding_scale
        x, inner = None, None
        pages = (tokens.page_table, tokens.starts, tokens.lengths)
        for i, layer in enumerate(self._layers):
            norms, rope = layer.norms, self._ropes[layer.rope]
            y = norm(residual, x, norms["input_norm"], inner=inner)
            where = (*rope, tokens.positions, tokens.slots, k[i], v[i])
            heads = {"heads": self._heads, "q_norm": norms["q_norm"], "k_norm": norms["k_norm"], "eps": self._eps}
            query = self._rotary(layer.qkv(y), *where, **heads)
            options = windowed if layer.window else plain
            mixed = self._attention(query, k[i], v[i], *pages, window=layer.window, **self._score, **options)
            y = norm(residual, layer.out(mixed.flatten(1)), norms["mlp_norm"], inner=norms["attention_norm"])
            x, inner = layer.down(self._gate(layer.gate_up(y), gelu=self._gelu)), norms["output_norm"]
        if keep is not None:
            residual, x = residual[keep], None if x is None else x[keep]
        states: Tensor = norm(residual, x, self._final_norm, inner=inner)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """(rows, V) float32 of normalised states."""
        return self._head(states)

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            product([attention.q_proj, attention.k_proj, attention.v_proj]),
            product([attention.o_proj]),
            product([mlp.gate_proj, mlp.up_proj]),
            product([mlp.down_proj]),
            layer_norms(layer),
            self._kinds.index(attention.layer_type) if len(self._kinds) > 1 else 0,
            window(attention),
        )


def device_forward(
    model: Any, device: torch.device, backend: str, accelerate: bool, compile: bool | str, graphs: bool | str
) -> DeviceForward | None:
    """The forward of our own for steps in static buffers, if it is wanted and can be.

    Raises:
        UnsupportedModel: ``graphs=True`` asks for what cannot be; the reason is named.
        ValueError: ``graphs`` is not True, False or "auto".
    """
    if graphs not in (True, False, "auto"):
        raise ValueError(f'graphs must be True, False or "auto", got {graphs!r}')
    if graphs is True:
        reason = why_not(model, device.type)
        reason = reason or ("compile has graphs of its own" if compile else None)
        reason = reason or (None if accelerate else "accelerate=False asks for the model's own forward")
        if reason is not None:
            raise UnsupportedModel(f"graphs=True: {reason}; graphs=False runs {type(model).__name__} without them")
        return DeviceForward(model, backend)
    if device.type != "cuda" or not accelerate or compile or pick(backend, "cuda") == "cuda":
        return None
    return DeviceForward.of(model, backend)
