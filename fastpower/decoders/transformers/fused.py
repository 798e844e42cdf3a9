"""Llama-shaped models of transformers in one C++ call per forward (``csrc/cpu/decoder_forward.h``).

A model is taken only if every part of it is one that the C++ forward computes: ``FusedForward.of`` looks at the exact
classes, the dtype, the activation, the rotary embedding and hooks, and says why it declines. Anything declined runs
through transformers' own modules, which is slower and gives the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastpower import _C
from fastpower.kernels import PackedLinear, pack_linear
from fastpower.kernels.addresses import address, array_address

#: classes whose forward is what decoder_forward.h says; each is looked up by identity of module and name
_MODELS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}
_VERSION = attrgetter("_version")
_ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}
#: rotary scalings whose table does not depend on the longest sequence
_ROPES = {"default", "linear", "llama3", "yarn"}
#: logits of at most so many bytes go to memory that is used again: new memory costs a page fault per 4 KiB
_KEPT_LOGITS = 32 << 20


class FusedForward:
    """Packed weights of one model and its forward over a paged cache. Batch-invariant bit for bit.

    The weights are copied once (packed), so the model's own stay as they are; if they are written to later, the next
    forward that feeds a prompt packs them again. (Looking takes a memory access or three per weight, so steps of one
    token a row do not look: what they continue has keys and values of the old weights anyway.) Forward hooks of the
    modules are not called: ask ``hooked`` before.
    """

    def __init__(self, model: Any) -> None:
        """Use ``of``: this assumes that the model is one that can be taken."""
        self._model = model
        self._parameters = list(model.parameters())
        # asked at every step, so as few Python operations as can be: a module keeps its dictionaries for life
        self._hooks = [
            hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._positions = 0
        self._logits = torch.empty(0, dtype=torch.float32, device="cpu")
        self._pack()

    @classmethod
    def of(cls, model: Any) -> FusedForward | None:
        """The fused forward of ``model``, or None if ``why_not`` has a reason against it."""
        return cls(model) if why_not(model) is None else None

    def __call__(
        self,
        k: Tensor,
        v: Tensor,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        table: NDArray[np.int32],
        starts: NDArray[np.int32],
        lengths: NDArray[np.int32],
        keep: NDArray[np.integer[Any]],
        shared: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None,
    ) -> Tensor:
        """Append K/V of the packed tokens and return logits; see ``paged_attention`` for the page metadata.

        Args:
            k: (layers, pages, page_size, kv_heads, head_dim); written.
            v: Like ``k``.
            tokens: (N,) of the vocabulary.
            positions: (N,) of each token in its sequence.
            slots: (N,) where K/V of each token go.
            table: (S, max_pages).
            starts: (S+1,).
            lengths: (S,).
            keep: Indices of the tokens whose logits are wanted.
            shared: Runs of sequences that begin with the same pages.

        Returns:
            (len(keep), V) float32, valid until the next call.
        """
        begins = len(tokens) > len(keep) or not positions.all()  # every token of a step is drawn after
        if begins and self._version != self._current_version():
            self._pack()
        self._grow_ropes(int(positions.max()) + 1)
        rows = len(keep)
        logits = self._room(rows)
        keep = np.ascontiguousarray(keep, np.int64)
        groups = (np.empty(0, np.int32), np.empty(0, np.int32)) if shared is None else shared
        self._forward.run(
            ids=array_address(tokens, np.int64),
            positions=array_address(positions, np.int64),
            slots=array_address(slots, np.int64),
            tokens=len(tokens),
            keep=array_address(keep, np.int64),
            kept=rows,
            page_table=array_address(table, np.int32),
            sequences=table.shape[0],
            max_pages=table.shape[1],
            query_starts=array_address(starts, np.int32),
            lengths=array_address(lengths, np.int32),
            shared_starts=0 if shared is None else array_address(groups[0], np.int32),
            shared_pages=0 if shared is None else array_address(groups[1], np.int32),
            groups=0 if shared is None else len(groups[1]),
            k_cache=address(k, self._dtype),
            v_cache=address(v, self._dtype),
            layer_stride=k.stride(0),
            page_stride=k.stride(1),
            num_pages=k.shape[1],
            page_size=k.shape[2],
            logits=address(logits, torch.float32),
        )
        return logits

    @property
    def hooked(self) -> bool:
        """Whether a module of the model has got a forward hook meanwhile, which only its own forward would call."""
        return any(self._hooks)

    def times(self) -> dict[str, float]:
        """Seconds that the parts of the last forward took."""
        return dict(self._forward.times())

    def _room(self, rows: int) -> Tensor:
        """(rows, V) float32, not initialised."""
        size = rows * self.vocab_size
        if 4 * size > _KEPT_LOGITS:
            return torch.empty(rows, self.vocab_size, dtype=torch.float32, device="cpu")
        if self._logits.numel() < size:
            self._logits = torch.empty(size, dtype=torch.float32, device="cpu")
        return self._logits[:size].view(rows, self.vocab_size)

    # ------------------------------------------------------------------------------------------------- packing

    def _current_version(self) -> int:
        return sum(map(_VERSION, self._parameters))

    def _pack(self) -> None:
        self._version = self._current_version()
        model, config = self._model, self._model.config
        self._held: list[Any] = []  # what the C++ side points to
        body, attention = model.model, model.model.layers[0].self_attn
        embedding = body.embed_tokens
        self._dtype = embedding.weight.dtype
        scale = getattr(embedding, "embed_scale", None)
        head_dim = attention.head_dim
        self.vocab_size = model.lm_head.weight.shape[0]
        self._rope_types = rope_kinds(model)
        description = {
            "bfloat16": self._dtype == torch.bfloat16,
            "hidden": config.hidden_size,
            "q_heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": head_dim,
            "intermediate": config.intermediate_size,
            "vocab": self.vocab_size,
            "eps": config.rms_norm_eps,
            "scale": attention.scaling,
            "softcap": getattr(attention, "attn_logit_softcapping", None) or 0.0,
            "embedding_scale": 1.0 if scale is None else float(scale.to(embedding.weight.dtype)),
            "gelu": gelu(config),
            "embedding": self._hold(embedding.weight.detach().contiguous(), self._dtype),
            "final_norm": self._hold(norm_weight(body.norm), torch.float32),
            "head": self._linear([model.lm_head]),
            "ropes": len(self._rope_types),
        }
        self._forward = _C.DecoderForward(description, [self._layer(layer) for layer in body.layers])
        self._positions = 0

    def _layer(self, layer: Any) -> dict[str, Any]:
        attention, mlp = layer.self_attn, layer.mlp
        rope = self._rope_types.index(attention.layer_type) if len(self._rope_types) > 1 else 0
        return {
            "qkv": self._linear([attention.q_proj, attention.k_proj, attention.v_proj]),
            "out": self._linear([attention.o_proj]),
            "gate": self._linear([mlp.gate_proj]),
            "up": self._linear([mlp.up_proj]),
            "down": self._linear([mlp.down_proj]),
            **{
                name: None if norm is None else self._hold(norm, torch.float32)
                for name, norm in layer_norms(layer).items()
            },
            "rope": rope,
            "window": window(attention),
        }

    def _hold(self, tensor: Tensor, dtype: torch.dtype) -> int:
        self._held.append(tensor)
        return address(tensor, dtype)

    def _linear(self, modules: list[Any]) -> tuple[bool, int, int, int, int]:
        biases = [module.bias for module in modules]
        bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
        packed: PackedLinear = pack_linear(torch.cat([module.weight.detach() for module in modules]), bias)
        self._held.append(packed)
        return (
            packed.dtype == torch.bfloat16,
            packed.in_features,
            packed.out_features,
            address(packed.panels, torch.uint8),
            0 if packed.bias is None else address(packed.bias, torch.float32),
        )

    def _grow_ropes(self, positions: int) -> None:
        if positions <= self._positions:
            return
        self._positions = max(1024, 2 ** math.ceil(math.log2(positions)))
        self._ropes = []
        for index, kind in enumerate(self._rope_types):
            cos, sin = rope_table(self._model.model.rotary_emb, self._positions, kind)
            half = cos.shape[-1] // 2
            cos, sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()
            self._ropes.append((cos, sin))
            turns = address(cos, torch.float32), address(sin, torch.float32)
            self._forward.set_rope(index, *turns, self._positions)


def why_not(model: Any, device: str = "cpu") -> str | None:
    """None if ``model`` can run in a forward of our own on this type of device, else what is in the way."""
    kind, home = type(model).__name__, type(model).__module__
    family = _MODELS.get(kind)
    if family is None or home != f"transformers.models.{family}.modeling_{family}":
        return f"{kind} is not one of {', '.join(_MODELS)} of transformers"
    config = model.config
    tensors = list(model.parameters())
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1 or dtypes & {torch.float32, torch.bfloat16} != dtypes:
        return f"weights are {', '.join(sorted(map(str, dtypes)))}; all float32 or all bfloat16 is wanted"
    if kinds := {type(tensor.data) for tensor in tensors} - {Tensor}:
        return f"weights are {', '.join(sorted(kind.__name__ for kind in kinds))}"
    if any(tensor.device.type != device for tensor in tensors):
        return f"the model is not on the {device.upper()}"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or kind} has forward hooks"
        if "forward" in vars(module):
            return f"{name or kind} has a forward of its own"
        origin = type(module).__module__
        if origin.startswith("torch.nn"):
            if type(module) not in (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU):
                return f"{name} is a {type(module).__name__}"
        elif origin != home and not origin.startswith("transformers.activations"):
            return f"{name} is a {origin}.{type(module).__name__}"
    if _activation(config) not in _ACTIVATIONS:
        return f"activation {_activation(config)}"
    if getattr(config, "final_logit_softcapping", None) is not None:
        return "the logits are soft-capped"
    if getattr(config, "use_bidirectional_attention", None):
        return "attention is bidirectional"
    attention = model.model.layers[0].self_attn
    if config.hidden_size % 2 or config.intermediate_size % 2:
        return "a width is odd"
    if attention.head_dim % 8 or attention.head_dim > 256:
        return f"heads of {attention.head_dim}; paged_attention takes multiples of 8 up to 256"
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    if len({projection.bias is None for projection in projections}) != 1:
        return "only some of q, k and v have a bias"
    return _why_not_rope(model, attention.head_dim)


def _why_not_rope(model: Any, head_dim: int) -> str | None:
    parameters = model.config.rope_parameters
    for kind in rope_kinds(model):
        rope_type = (parameters if kind is None else parameters[kind])["rope_type"]
        if rope_type not in _ROPES:
            return f"rotary scaling {rope_type}"
        cos, sin = rope_table(model.model.rotary_emb, 3, kind)
        half = head_dim // 2
        if cos.shape != (3, head_dim) or not _equal_halves((cos, sin), half):
            return "the rotary embedding does not turn whole heads in two halves"
    return None


def _equal_halves(tables: Iterable[Tensor], half: int) -> bool:
    return all(torch.equal(table[:, :half], table[:, half:]) for table in tables)


def rope_table(rotary: Any, positions: int, kind: str | None) -> tuple[Tensor, Tensor]:
    """cos and sin (positions, head_dim) in float32 from a model's own rotary module."""
    with torch.inference_mode(False), torch.no_grad():
        place = rotary.inv_freq.device if hasattr(rotary, "inv_freq") else next(rotary.buffers()).device
        arguments = (
            torch.zeros(1, dtype=torch.float32, device=place),
            torch.arange(positions, dtype=torch.int64, device=place)[None],
        )
        cos, sin = rotary(*arguments, *(() if kind is None else (kind,)))
    return cos[0], sin[0]


def rope_kinds(model: Any) -> list[str] | list[None]:
    """Layer types with a rotary embedding each, or [None] for one of all layers."""
    return sorted(set(model.config.layer_types)) if type(model).__name__ == "Gemma3ForCausalLM" else [None]


def norm_weight(norm: nn.Module) -> Tensor:
    """What a norm multiplies by, float32, a copy."""
    weight = norm.weight.detach().to(torch.float32)  # type: ignore[operator]
    return 1.0 + weight if type(norm).__name__ == "Gemma3RMSNorm" else weight.clone()


def layer_norms(layer: Any) -> dict[str, Any]:
    """The norms of a layer by the names of ``decoder_forward.h``, float32; None for those that it has not."""
    four = hasattr(layer, "pre_feedforward_layernorm")  # Gemma
    norms = {
        "input_norm": layer.input_layernorm,
        "attention_norm": layer.post_attention_layernorm if four else None,
        "mlp_norm": layer.pre_feedforward_layernorm if four else layer.post_attention_layernorm,
        "output_norm": layer.post_feedforward_layernorm if four else None,
        "q_norm": getattr(layer.self_attn, "q_norm", None),
        "k_norm": getattr(layer.self_attn, "k_norm", None),
    }
    return {name: None if norm is None else norm_weight(norm) for name, norm in norms.items()}


def gelu(config: Any) -> bool:
    """Whether the activation is the tanh-approximated GELU, not SiLU."""
    return _ACTIVATIONS[_activation(config)]


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_act", None) or config.hidden_activation)


def window(attention: Any) -> int:
    """The sliding window of a layer as its attention function is told it; 0 for none."""
    if type(attention).__name__ == "MistralAttention":
        return int(attention.config.sliding_window or 0)
    return int(getattr(attention, "sliding_window", None) or 0)
