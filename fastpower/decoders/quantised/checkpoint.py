"""Weights of a transformers model, quantised when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastpower.decoders.quantised.weights import Layer, Rope, Weights
from fastpower.decoders.transformers import fused
from fastpower.decoders.transformers.layout import max_length
from fastpower.errors import UnsupportedModel
from fastpower.kernels import PackedLinear, QuantisedBlocks, pack_linear, quantise
from fastpower.kernels.quantised import PanelMemory
from fastpower.models.gguf.architecture import Architecture

#: weights= → formats of the layers' matrices, and of embedding and head, which decide more and weigh little
KINDS = {"q8": ("Q8_0", "Q8_0"), "q4": ("Q4_0", "Q8_0")}


def check_kind(weights: str) -> None:
    """Refuse a name that is not in ``KINDS``.

    Raises:
        ValueError: It is not.
    """
    if weights not in KINDS:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(map(repr, KINDS))}")


def weights_of_model(model: Any, kind: str, *, consume: bool = False) -> Weights:
    """Round every matrix to the nearest values of ``KINDS[kind]``, groups of 32; see ``fastpower.kernels.quantise``.

    Args:
        model: Of transformers.
        kind: A name in ``KINDS``.
        consume: Empty the model's matrices as they are packed, so that they are not held twice.

    Raises:
        UnsupportedModel: A model that the fused forward does not take, or rows that are no multiple of 32.
        ValueError: An unknown kind.
    """
    check_kind(kind)
    reason = fused.why_not(model)
    if reason is not None:
        raise UnsupportedModel(f"weights={kind!r} needs a model that the fused forward takes: {reason}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % 32:
            raise UnsupportedModel(f"weights={kind!r} takes rows of multiples of 32, {name} has {module.in_features}")
    rounder = _Rounder(*KINDS[kind], consume)
    body, head = model.model, model.lm_head
    tied = head.weight is body.embed_tokens.weight
    architecture, ropes = _architecture(model), _ropes(model)
    embedding = rounder.outer(body.embed_tokens)
    weights = Weights(
        architecture,
        embedding,
        embedding if tied else rounder.outer(head),
        fused.norm_weight(body.norm),
        ropes,
    )
    for layer in body.layers:
        weights.layers.append(_layer(layer, rounder))
    return weights


def _layer(layer: Any, rounder: _Rounder) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = fused.layer_norms(layer)
    return Layer(
        qkv=[rounder.inner(attention.q_proj, attention.k_proj, attention.v_proj)],
        out=rounder.inner(attention.o_proj),
        gate=rounder.inner(mlp.gate_proj),
        up=rounder.inner(mlp.up_proj),
        down=rounder.inner(mlp.down_proj),
        **norms,
    )


class _Rounder:
    def __init__(self, inner: str, outer: str, consume: bool) -> None:
        self._inner, self._outer, self._consume, self._memory = inner, outer, consume, PanelMemory()

    def inner(self, *modules: Any) -> PackedLinear:
        return self._pack(modules, self._inner)

    def outer(self, module: Any) -> PackedLinear:
        return self._pack([module], self._outer)

    def _pack(self, modules: Any, format: str) -> PackedLinear:
        blocks = torch.cat([quantise(module.weight.detach(), format).blocks for module in modules])
        biases = [module.bias for module in modules if getattr(module, "bias", None) is not None]  # of all or of none
        bias = torch.cat([one.detach().to(torch.float32) for one in biases]) if biases else None
        if self._consume:
            for module in modules:
                module.weight.data = torch.empty(0, dtype=module.weight.dtype, device="cpu")
        return pack_linear(QuantisedBlocks(blocks, format), bias, memory=self._memory)


def _architecture(model: Any) -> Architecture:
    config, attention = model.config, model.model.layers[0].self_attn
    scale = getattr(model.model.embed_tokens, "embed_scale", None)
    layers = model.model.layers
    kinds = fused.rope_kinds(model)
    return Architecture(
        name=str(config.model_type),
        layers=len(layers),
        hidden=config.hidden_size,
        q_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        intermediate=config.intermediate_size,
        vocab=model.lm_head.weight.shape[0],
        eps=config.rms_norm_eps,
        scale=attention.scaling,
        softcap=getattr(attention, "attn_logit_softcapping", None) or 0.0,
        embedding_scale=1.0 if scale is None else float(scale),
        gelu=fused.gelu(config),
        max_length=max_length(config.get_text_config(decoder=True)),
        ropes=(),  # their tables come from the model
        rope_of=tuple(kinds.index(one.self_attn.layer_type) if len(kinds) > 1 else 0 for one in layers),
        window_of=tuple(fused.window(one.self_attn) for one in layers),
    )


def _ropes(model: Any) -> list[Rope]:
    rotary: Callable[..., tuple[Tensor, Tensor]] = model.model.rotary_emb

    def rope(kind: str | None) -> Rope:
        def tables(positions: int) -> tuple[Tensor, Tensor]:
            cos, sin = fused.rope_table(rotary, positions, kind)
            half = cos.shape[-1] // 2
            return cos[:, :half], sin[:, :half]

        return tables

    return [rope(kind) for kind in fused.rope_kinds(model)]
