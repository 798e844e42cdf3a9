"""What the K/V cache of a transformers model must look like, or why it cannot be a paged one.

A configuration says little that can be relied upon across hundreds of architectures, so the model is run once on a few
tokens with an attention function that writes down what arrives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpower.errors import UnsupportedModel
from fastpower.interfaces import changed, require

#: name under which attention is registered with transformers; "flash" in it would change how masks are made
ATTENTION = "fastpower"

#: keywords of an attention call that change its result and that the paged path does not compute
_UNSUPPORTED_KEYWORDS = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias added to the scores",
    "head_mask": "a head mask",
    "indexer": "sparse attention",
}

#: layer types (``config.layer_types``) whose only memory is keys and values of earlier tokens
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "attention", "dense", "sparse"}


class KVLayout(NamedTuple):
    """One K/V pair of tensors per layer, all layers alike."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    max_length: int  #: tokens of context


class _Call(NamedTuple):
    layer: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    window: int
    softcap: float


class _Recorder:
    """Takes the place of a step in the attention function: records every call, computes nothing."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: Any, window: Any, softcap: Any, **kw: Any
    ) -> Tensor:
        refuse_keywords(kw)
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise UnsupportedModel(f"{type(module).__name__} has no layer_idx: its place in the cache is unknown")
        if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
            raise UnsupportedModel(
                f"{type(module).__name__} uses heads of different sizes for queries, keys and values "
                f"({query.shape[-1]}, {key.shape[-1]}, {value.shape[-1]}; as in latent attention); the paged cache "
                "needs one size"
            )
        if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
            raise UnsupportedModel(f"{type(module).__name__} attends to something else than the tokens of its input")
        self.calls.append(
            _Call(layer, key.shape[1], key.shape[3], key.dtype, key.device, int(window or 0), softcap or 0.0)
        )
        return torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def refuse_keywords(keywords: dict[str, Any]) -> None:
    """Refuse an attention call that carries something that the paged path would leave out.

    Raises:
        UnsupportedModel: It does.
    """
    for name, what in _UNSUPPORTED_KEYWORDS.items():
        if keywords.get(name) is not None:
            raise UnsupportedModel(f"the model's attention uses {what} ({name}), which the paged path does not compute")


def refuse_by_config(model: Any) -> None:
    """Refuse the models that can be told by what they declare, with a plain reason for each.

    Raises:
        UnsupportedModel: ``model`` is one.
    """
    kind, config = type(model).__name__, model.config
    text = require(config, "get_text_config", "transformers")(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{kind} is an encoder–decoder; only decoder-only causal language models are supported")
    if model.get_output_embeddings() is None:
        raise UnsupportedModel(f"{kind} has no language-model head; load it with AutoModelForCausalLM")
    odd = sorted(set(getattr(text, "layer_types", None) or ()) - _PLAIN_LAYERS)
    if odd:
        raise UnsupportedModel(
            f"{kind} has layers of type {', '.join(odd)}, whose state is not a plain K/V cache "
            "and can be neither forked nor truncated by pages"
        )
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModel(f"{kind} keeps a recurrent state (state-space or linear attention), not a K/V cache")
    supports = require(model, "_supports_attention_backend", "transformers")
    if not (supports and require(model, "_can_set_attn_implementation", "transformers")()):
        raise UnsupportedModel(f"{kind} does not route its attention through transformers' AttentionInterface")


def refuse_by_placement(model: Any) -> None:
    """Refuse models that are not whole on one device: the cache and the kernels need every layer there.

    A ``device_map`` that names one device is fine.

    Raises:
        UnsupportedModel: ``model`` is not.
    """
    kind = type(model).__name__
    remedy = "load it on one device; on several GPUs run one process each (fastpower.integrations.ray)"
    for name in ("tp_size", "fsdp_size"):
        size = getattr(model, name, None) or 1
        if size > 1:
            raise UnsupportedModel(f"{kind} is sharded over {size} processes ({name}): {remedy}")
    places = sorted({str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1 or places == ["disk"]:
        raise UnsupportedModel(f"{kind} is spread over {', '.join(places)} by its device_map: {remedy}")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise UnsupportedModel(f"{kind} has weights on {', '.join(devices)}: {remedy}")


def kv_layout(model: Any) -> KVLayout:
    """The layout of ``model``'s cache, found by one forward of two tokens (attention already set to ATTENTION)."""
    kind, text = type(model).__name__, model.config.get_text_config(decoder=True)
    recorder, device = _Recorder(), model.get_input_embeddings().weight.device
    try:
        out = model(
            input_ids=torch.tensor([[0, 1]], dtype=torch.int64, device=device),
            position_ids=torch.tensor([[0, 1]], dtype=torch.int64, device=device),
            use_cache=False,
            logits_to_keep=torch.tensor([1], dtype=torch.int64, device=device),
            fastpower_step=recorder,
        )
    except TypeError as error:
        raise UnsupportedModel(f"{kind}.forward does not take the arguments of a packed batch: {error}") from error
    calls, layers = recorder.calls, int(text.num_hidden_layers)
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise UnsupportedModel(
            f"{kind} has {layers} layers but attention ran in layers {sorted(call.layer for call in calls)}: the state "
            "of the others (state-space, linear attention, …) is not a plain K/V cache"
        )
    shapes = {(call.num_kv_heads, call.head_dim, call.dtype) for call in calls}
    if len(shapes) != 1:
        raise UnsupportedModel(f"{kind}'s layers differ in K/V heads, head size or dtype ({shapes}); pages need one")
    head_dim = calls[0].head_dim
    if head_dim % 8 or head_dim > 256:
        raise UnsupportedModel(f"{kind} has heads of {head_dim}; paged attention takes multiples of 8 up to 256")
    if len({call.device for call in calls}) != 1:
        raise UnsupportedModel(f"{kind} is spread over several devices; the paged cache needs all layers on one")
    for call, layer_type in zip(sorted(calls), getattr(text, "layer_types", None) or (), strict=False):
        if layer_type == "sliding_attention" and call.window == 0:
            raise UnsupportedModel(f"{kind}: layer {call.layer} slides but does not tell its attention the window")
    _refuse_silence(kind, text, calls)
    first = calls[0]
    return KVLayout(
        layers,
        first.num_kv_heads,
        first.head_dim,
        first.dtype,
        first.device,
        vocab_size=out.logits.shape[-1],
        max_length=max_length(text),
    )


def _refuse_silence(kind: str, text: Any, calls: list[_Call]) -> None:
    """Refuse a model that declares a window or a soft cap of which its attention is not told.

    Under another keyword it would be left out, and short texts give the same logits without it.

    Raises:
        InterfaceChanged: ``calls`` lack one.
    """
    layered = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window and not layered and not any(call.window for call in calls):
        raise changed("transformers", f"{kind} has sliding_window = {window}, its attention is not given one")
    softcap = getattr(text, "attn_logit_softcapping", None)
    if softcap and not any(call.softcap for call in calls):
        raise changed("transformers", f"{kind} has attn_logit_softcapping = {softcap}, its attention is not given one")


def max_length(text: Any) -> int:
    """The context length that holds for every token alike.

    Rotary scalings that change with the longest sequence of a batch ("longrope", "dynamic") are used up to where they
    would switch: beyond it a token's probability would depend on what else is in the batch, or on what came later.
    """
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
    length = next((int(getattr(text, name)) for name in names if getattr(text, name, None)), 2**31 - 1)
    rope = getattr(text, "rope_parameters", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type") in ("longrope", "dynamic"):
            original = one.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None) or length
            length = min(length, int(original))
    return length
