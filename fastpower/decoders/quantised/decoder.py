"""A decoder whose weights stay quantised, on the CPU."""

from __future__ import annotations

from typing import Any

import torch

from fastpower.decoders.quantised.forward import QuantisedForward
from fastpower.decoders.quantised.weights import Weights
from fastpower.decoders.transformers.decoder import TransformersDecoder
from fastpower.decoders.transformers.layout import KVLayout
from fastpower.decoders.transformers.packing import Packer
from fastpower.decoders.transformers.resources import paged_cache


class QuantisedDecoder(TransformersDecoder):
    """The decoder protocol on quantised weights, without a model of transformers (``model`` is None).

    Exact for the model that the quantised weights are, its rows rounded as ``linear`` says; batch-invariant bit for
    bit.

    Args:
        weights: See ``fastpower.decoders.quantised.weights``.
        tokenizer: Of transformers, or None.
        eos_ids: Tokens that end an answer.
        dtype: Of keys and values, float32 or bfloat16.
        cache_tokens: As of ``TransformersDecoder``.
        memory_fraction: As of ``TransformersDecoder``.
        page_size: As of ``TransformersDecoder``.

    Raises:
        OutOfMemory: The cache does not fit; it is not allocated.
    """

    def __init__(
        self,
        weights: Weights,
        tokenizer: Any = None,
        *,
        eos_ids: frozenset[int] = frozenset(),
        dtype: torch.dtype = torch.float32,
        cache_tokens: int | None = None,
        memory_fraction: float = 0.25,
        page_size: int = 16,
    ) -> None:
        a = weights.architecture
        self.model, self.tokenizer, self.backend = None, tokenizer, "auto"
        self.weights = weights
        self.vocab_size, self.max_length, self.eos_ids = a.vocab, a.max_length, eos_ids
        device = torch.device("cpu")
        self.layout = KVLayout(a.layers, a.kv_heads, a.head_dim, dtype, device, a.vocab, a.max_length)
        self._fused = QuantisedForward(weights, dtype)
        self._compiled = None
        self.cache = paged_cache(self.layout, cache_tokens, memory_fraction, page_size)
        self._packer = Packer(self.cache, self.vocab_size, self.max_length)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads, as they are packed."""
        return self.weights.step_bytes

    def refresh(self) -> bool:
        """False: these weights are the decoder's own, and nobody else can write to them."""
        return False

    def forget(self) -> None:
        """Forget every remembered prefix.

        Raises:
            ValueError: Sequences are held.
        """
        self._refuse_held()
        self.cache.forget()

    def close(self) -> None:
        """Give the memory of weights and cache back. The decoder cannot be used afterwards."""
        for name in ("cache", "_packer", "weights"):
            self.__dict__.pop(name, None)
        self._fused = None
