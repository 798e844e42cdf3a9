"""From a name, a file or a model to a decoder on quantised weights, or a sentence why not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from fastpower.decoders.quantised.checkpoint import check_kind, weights_of_model
from fastpower.decoders.quantised.decoder import QuantisedDecoder
from fastpower.decoders.quantised.gguf import refuse_formats, weights_of
from fastpower.errors import InvalidModelFile
from fastpower.models import memory
from fastpower.models.gguf import GGUFFile, Undescribed, architecture_of
from fastpower.models.gguf.tokenizer import end_tokens, tokenizer_of
from fastpower.models.loading import load_model
from fastpower.models.packaged import DEFAULT_MODEL, find, packaged_files
from fastpower.models.reading import expanded

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.float32}
#: options of TransformersDecoder that this decoder has, too, or that choose what it is
_OPTIONS = {"memory_fraction", "page_size", "cache_tokens"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {"accelerate": (True,), "compile": (False,), "backend": ("auto", "cpu")}


def gguf_files(name_or_path: str | os.PathLike[str] | None) -> list[Path] | None:
    """The GGUF file of a packaged model or at a path, or its parts; None for anything else."""
    name = DEFAULT_MODEL if name_or_path is None else os.fspath(name_or_path)
    path = expanded(name)
    if path.suffix == ".gguf" and path.is_file():
        return [path]
    packaged = None if path.exists() else find(name)
    return None if packaged is None else packaged_files(packaged)


def open_gguf(
    files: Sequence[Path],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> QuantisedDecoder | None:
    """A decoder on the file's own weights; None, with a warning that says why, if transformers has to unpack it.

    Args:
        files: The file, or its parts.
        dtype: Of keys and values.
        device: Where to; the CPU or None.
        options: Of the decoder.
        kwargs: For ``from_pretrained``, which none of them can be used without.

    Raises:
        InvalidModelFile: The file is broken.
        OutOfMemory: It does not fit.
    """
    chosen = _DTYPES.get(str(dtype).removeprefix("torch."))
    own = {name: value for name, value in (options or {}).items() if name in _OPTIONS}
    try:
        _refuse_request(chosen, dtype, device, options or {}, kwargs or {})
        return _open(files, chosen or torch.float32, own)
    except Undescribed as reason:
        warnings.warn(
            f"{files[0].name}: {reason}; so transformers unpacks its weights, which takes longer and more memory",
            stacklevel=3,
        )
        return None


def quantise_model(
    model: Any,
    tokenizer: Any,
    kind: str,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> QuantisedDecoder:
    """A decoder on rounded weights of a model.

    Args:
        model: A name or path for ``load_model``, or a loaded model, which stays as it is.
        tokenizer: Of a loaded model.
        kind: A name in ``KINDS``.
        dtype: Of keys and values.
        device: Where to; the CPU or None.
        options: Of the decoder.
        **kwargs: For ``load_model``.

    Raises:
        ValueError: An unknown kind, or options that do not go together.
        UnsupportedModel: A model that the fused forward does not take.
    """
    check_kind(kind)
    chosen = _DTYPES.get(str(dtype).removeprefix("torch."))
    if chosen is None:
        raise ValueError(f'weights={kind!r} keeps K/V in dtype="float32" or "bfloat16", got {dtype!r}')
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"weights={kind!r} runs on the CPU, got device={str(device)!r}")
    unknown = {n: v for n, v in (options or {}).items() if n not in _OPTIONS and v not in _NEUTRAL.get(n, (v,))}
    if unknown:
        raise ValueError(f"weights={kind!r} does not go with decoder_options={unknown}")
    loaded = model is None or isinstance(model, (str, os.PathLike))
    if loaded:
        for path in gguf_files(model) or ():
            raise ValueError(f"weights={kind!r}: the weights of {path.name} are what its file says; leave weights out")
        model, tokenizer = load_model(model, dtype="auto", **kwargs)
        if model.dtype == torch.float16:
            model = model.to(torch.float32)
    from fastpower.decoders.transformers.resources import eos_ids

    ends = eos_ids(model, tokenizer)
    weights = weights_of_model(model, kind, consume=loaded)
    own = {name: value for name, value in (options or {}).items() if name in _OPTIONS}
    return QuantisedDecoder(weights, tokenizer, eos_ids=ends, dtype=chosen, **own)


def _refuse_request(
    chosen: torch.dtype | None,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    options: Mapping[str, Any],
    kwargs: Mapping[str, Any],
) -> None:
    if chosen is None:
        raise Undescribed(f"dtype={dtype!r} was asked for, and quantised weights go with float32 or bfloat16")
    if device is not None and torch.device(device).type != "cpu":
        raise Undescribed(f"device={str(device)!r} was asked for, and quantised weights are multiplied on the CPU")
    if kwargs:
        raise Undescribed(f"{', '.join(sorted(kwargs))} can only be given to transformers")
    for name, value in options.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise Undescribed(f"decoder_options={{{name!r}: {value!r}}} chooses another forward")


def _open(files: Sequence[Path], dtype: torch.dtype, options: Mapping[str, Any]) -> QuantisedDecoder:
    before = [_stamp(path) for path in files]
    with GGUFFile(*files) as file, ThreadPoolExecutor(1) as pool:
        architecture = architecture_of(file)
        refuse_formats(file)
        remedy = "use a smaller model or a smaller quantisation of it"
        memory.require(file.nbytes, f"model {str(file.path)!r} as it is stored", remedy)
        packing = pool.submit(weights_of, file, architecture)  # in C++, beside Python's work on the tokenizer
        tokenizer = tokenizer_of(file)
        weights = packing.result()
    if [_stamp(path) for path in files] != before:
        raise InvalidModelFile(
            f"model file {str(files[0])!r}: was written to while it was read; load it when it is complete"
        )
    return QuantisedDecoder(weights, tokenizer, eos_ids=end_tokens(file), dtype=dtype, **options)


def _stamp(path: Path) -> tuple[int, int, int]:
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns
