"""``fastpower.load("llama.cpp:FILE")``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastpower.decoders.llama_cpp.decoder import LlamaCppDecoder
from fastpower.models.gguf import GGUFFile
from fastpower.models.gguf.tokenizer import tokenizer_of

PREFIX = "llama.cpp:"


def open_llama_cpp(name: str, tokenizer: Any = None, **options: Any) -> LlamaCppDecoder:
    """The decoder on a GGUF file, with the file's own tokenizer as transformers reads it.

    Args:
        name: "llama.cpp:" and a path.
        tokenizer: Of transformers, in place of the file's.
        **options: Of ``LlamaCppDecoder``.

    Raises:
        TypeError: An option that the decoder does not have; the error names those that it has.
    """
    known = {"cache_tokens", "threads", "gpu_layers"}
    if unknown := options.keys() - known:
        raise TypeError(f"llama.cpp takes {', '.join(sorted(known))} as decoder_options, got {sorted(unknown)}")
    path = Path(name.removeprefix(PREFIX)).expanduser()
    decoder = LlamaCppDecoder(path, tokenizer, **options)
    if tokenizer is None:
        try:
            with GGUFFile(path) as file:
                decoder.tokenizer = tokenizer_of(file)
        except Exception as error:  # of a kind that transformers does not know: llama.cpp's own will do
            warnings.warn(
                f"{path.name}: its tokenizer is llama.cpp's, without a chat template, because transformers does not "
                f"read it ({error}); give load() a tokenizer to have one",
                stacklevel=3,
            )
    return decoder


def refuse(weights: Any, dtype: Any, device: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of ``load`` that llama.cpp decides about itself.

    Raises:
        ValueError: One is given.
    """
    for name, value, neutral in (
        ("weights", weights, (None,)),
        ("dtype", dtype, (None, "float32")),
        ("device", device, (None, "auto")),
    ):
        if value not in neutral:
            raise ValueError(
                f"{name}={value!r} cannot be applied to llama.cpp: the file decides about its weights, and "
                "decoder_options={'gpu_layers': …} where they are"
            )
    if kwargs:
        raise ValueError(f"{sorted(kwargs)} are for transformers; llama.cpp has decoder_options")
