"""What a GGUF file says of its model, for the architectures that the fused forward takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastpower.errors import InvalidModelFile
from fastpower.models.gguf.header import GGUFFile

#: architectures, as files name them
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
#: Gemma-3: every sixth layer attends to everything, the others to a window, with a rotary base of their own
_GEMMA_PATTERN, _GEMMA_LOCAL_BASE = 6, 10_000.0
#: tensors of a file, and of a layer; everything else in a file would be left out, so it is not taken
_OUTER = {"token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight"}
_LAYER = {
    *(f"attn_{part}.{kind}" for part in ("q", "k", "v") for kind in ("weight", "bias")),
    *("attn_norm.weight", "attn_output.weight", "ffn_norm.weight"),
    *("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"),
}
_MORE = {
    "qwen3": {"attn_q_norm.weight", "attn_k_norm.weight"},
    "gemma3": {
        *("attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "post_ffw_norm.weight"),
    },
}


class Undescribed(Exception):
    """The file may be fine, but holds something that the fused forward does not compute; the text is a clause."""


@dataclass(frozen=True)
class Rotary:
    """inverse frequencies 1 / base^(2 i / head_dim), divided by ``factor``."""

    base: float
    factor: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """Sizes and constants of a model."""

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    scale: float  #: of attention scores
    softcap: float  #: of attention scores; 0: none
    embedding_scale: float
    gelu: bool  #: tanh-approximated GELU in the MLP, else SiLU
    max_length: int
    ropes: tuple[Rotary, ...]
    rope_of: tuple[int, ...]  #: of each layer, index into ropes
    window_of: tuple[int, ...]  #: of each layer, 0: none

    @property
    def four_norms(self) -> bool:
        """Norms before and after both blocks, instead of before only."""
        return self.name == "gemma3"

    @property
    def interleaved(self) -> bool:
        """Whether rows of q and k stand as pairs to rotate, not as two halves."""
        return self.name == "llama"


def architecture_of(file: GGUFFile) -> Architecture:
    """What a file's metadata says of the model.

    Raises:
        Undescribed: Something that the fused forward does not compute.
        InvalidModelFile: Something that does not fit.
    """
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise Undescribed(f"its architecture is {name!r}, not one of {', '.join(ARCHITECTURES)}")
    keys = _Keys(file, name)
    hidden, q_heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length", hidden // q_heads)
    kv_heads = keys.size("attention.head_count_kv", q_heads)
    layers = keys.size("block_count")
    if file.nbytes // layers < 64:
        raise keys.error("block_count", layers)
    _refuse(file, keys, layers, head_dim)
    ropes, rope_of, window_of = _positions(keys, name, layers)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InvalidModelFile(f"{file.path}: tensor 'token_embd.weight' is missing or no matrix; download it again")
    # Gemma's 27B divides by the width of its heads in the residual stream, as llama.cpp knows it by its layers
    scaled_width = hidden // q_heads if name == "gemma3" and layers == 62 else head_dim
    found = Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=keys.size("feed_forward_length"),
        vocab=embedding.shape[0],
        eps=keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        scale=scaled_width**-0.5,
        softcap=keys.number("attn_logit_softcapping", 0.0),
        embedding_scale=math.sqrt(hidden) if name == "gemma3" else 1.0,
        gelu=name == "gemma3",
        max_length=keys.size("context_length"),
        ropes=ropes,
        rope_of=rope_of,
        window_of=window_of,
    )
    _check_shapes(file, found)
    return found


def _refuse(file: GGUFFile, keys: _Keys, layers: int, head_dim: int) -> None:
    if keys.size("expert_count", 0, least=0):
        raise Undescribed("it is a mixture of experts")
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise Undescribed("its values have another size than its keys")
    if keys.size("rope.dimension_count", head_dim) != head_dim:
        raise Undescribed("it rotates a part of each head only")
    if head_dim % 8 or head_dim > 256:
        raise Undescribed(f"it has heads of {head_dim}; paged_attention takes multiples of 8 up to 256")
    if keys.number("final_logit_softcapping", 0.0):
        raise Undescribed("its logits are soft-capped")
    allowed = _LAYER | _MORE.get(keys.name, set())
    for name in file.tensors:
        block, _, rest = name.removeprefix("blk.").partition(".")
        if name not in _OUTER and not (name.startswith("blk.") and block.isdigit() and rest in allowed):
            raise Undescribed(f"it holds a tensor {name!r}, which {keys.name} models do not have")
        if name.startswith("blk.") and block.isdigit() and int(block) >= layers:
            raise Undescribed(f"it holds a tensor {name!r} of a layer beyond its {layers}")


def _positions(keys: _Keys, name: str, layers: int) -> tuple[tuple[Rotary, ...], tuple[int, ...], tuple[int, ...]]:
    scaling = keys.file.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise Undescribed(f"its rotary scaling is {scaling!r}")
    factor = keys.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
    base = keys.number("rope.freq_base", 1_000_000.0 if name == "gemma3" else 10_000.0)
    window = keys.size("attention.sliding_window", 0, least=0)
    if name != "gemma3":
        return (Rotary(base, factor),), (0,) * layers, (0,) * layers
    local = [(i + 1) % _GEMMA_PATTERN != 0 for i in range(layers)]
    ropes = (Rotary(base, factor), Rotary(_GEMMA_LOCAL_BASE))
    return ropes, tuple(int(one) for one in local), tuple(window if one else 0 for one in local)


def _check_shapes(file: GGUFFile, a: Architecture) -> None:
    """Every matrix has the shape that the sizes imply, so that nothing is found wrong in the middle of packing."""
    q, kv = a.q_heads * a.head_dim, a.kv_heads * a.head_dim
    if a.q_heads % a.kv_heads:
        raise InvalidModelFile(f"{file.path}: {a.q_heads} query heads over {a.kv_heads} of keys; convert it again")
    wanted: dict[str, tuple[int, ...]] = {"token_embd.weight": (a.vocab, a.hidden), "output_norm.weight": (a.hidden,)}
    if "output.weight" in file.tensors:
        wanted["output.weight"] = (a.vocab, a.hidden)
    if "rope_freqs.weight" in file.tensors:
        wanted["rope_freqs.weight"] = (a.head_dim // 2,)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (a.hidden,),
        "ffn_norm.weight": (a.hidden,),
        "attn_q.weight": (q, a.hidden),
        "attn_k.weight": (kv, a.hidden),
        "attn_v.weight": (kv, a.hidden),
        "attn_output.weight": (a.hidden, q),
        "ffn_gate.weight": (a.intermediate, a.hidden),
        "ffn_up.weight": (a.intermediate, a.hidden),
        "ffn_down.weight": (a.hidden, a.intermediate),
    }
    for name in _MORE.get(a.name, ()):
        layer[name] = (a.head_dim,) if "_norm" in name and name.startswith("attn_") else (a.hidden,)
    for i in range(a.layers):
        wanted |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
        biases = [name for name in ("q", "k", "v") if f"blk.{i}.attn_{name}.bias" in file.tensors]
        if biases and len(biases) < 3:
            raise Undescribed(f"layer {i} has a bias for {', '.join(biases)} only")
        for name in biases:
            wanted[f"blk.{i}.attn_{name}.bias"] = (q if name == "q" else kv,)
    for name, shape in wanted.items():
        entry = file.tensors.get(name)
        if entry is None or entry.shape != shape:
            found = "is missing" if entry is None else f"has the shape {entry.shape}"
            raise InvalidModelFile(
                f"model file {str(file.path)!r}: tensor {name!r} {found}, {shape} is wanted; download it again"
            )


class _Keys:
    """Metadata of an architecture, checked."""

    def __init__(self, file: GGUFFile, name: str) -> None:
        self.file, self.name = file, name

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise self.error(key, value)
        return value

    def number(self, key: str, default: float) -> float:
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise self.error(key, value)
        return float(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.file.metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:  # one for every layer
            value = value[0]
        return value

    def error(self, key: str, value: Any) -> InvalidModelFile:
        return InvalidModelFile(
            f"model file {str(self.file.path)!r}: metadata {self.name}.{key} is {value!r}; convert or download it again"
        )
