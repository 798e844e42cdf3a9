"""Loading a model by name, folder, GGUF file or hub id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpower.errors import FastpowerError, InvalidModelFile, ModelNotFound
from fastpower.interfaces import interface
from fastpower.models import memory
from fastpower.models.packaged import DEFAULT_MODEL, exported, find, names
from fastpower.models.reading import (
    LOADING,
    expanded,
    no_progress_bars,
    require_gguf,
    special_tokens_of_model,
    unpacked,
)

if TYPE_CHECKING:  # torch and transformers take seconds to import; only loading a model needs them
    import torch


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A causal language model of transformers in evaluation mode, and its tokenizer.

    Args:
        name_or_path: None: SmolLM2-135M-Instruct; "smollm2-135m-instruct" or "gemma3-270m" (packaged, no hub needed); a
            local folder; a ``.gguf`` file; anything else is a hub id and needs a network or a filled hub cache.
        dtype: Of the weights, e.g. "float32", "bfloat16", "float16", or "auto" (as stored).
        device: Where to put the model, e.g. "cuda"; None leaves it where transformers loads it.
        **kwargs: For ``AutoModelForCausalLM.from_pretrained`` (device_map, tp_plan, trust_remote_code, revision, …).

    Raises:
        ModelNotFound: A file, package or name that is not there: the message says what to install.
        OutOfMemory: It will not fit, before anything is read (local files without device_map, tp_plan or
            quantization_config, whose needs are their own).
        InvalidModelFile: Local files that transformers cannot load, with its reason.
    """
    import torch

    source = _resolve(name_or_path)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f'dtype={dtype!r} is not a torch dtype; use "float32", "bfloat16", "float16" or "auto"')
    shared: dict[str, Any] = {
        key: kwargs[key] for key in ("trust_remote_code", "revision", "token", "cache_dir") if key in kwargs
    }
    if source.gguf_file is not None:
        require_gguf()
        shared["gguf_file"] = kwargs["gguf_file"] = source.gguf_file
    if source.local:
        shared["local_files_only"] = kwargs["local_files_only"] = True
    placed = bool(kwargs.keys() & {"device_map", "tp_plan", "quantization_config"})  # may fail for whole files, too
    if source.local and not placed:
        _require_room(source, dtype, device)
    if source.gguf_file is not None and "quantization_config" not in kwargs:
        kwargs |= unpacked()
    with LOADING, no_progress_bars():
        with interface("transformers"):
            from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **shared)
            model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **kwargs)
            if source.gguf_file is not None:
                special_tokens_of_model(tokenizer, model.config)
        except (FastpowerError, ImportError, MemoryError):
            raise
        except Exception as error:  # damaged bytes surface as any kind of error, from any depth of the readers
            if source.local and not placed:
                raise _unreadable(source, error) from error
            if source.local or not isinstance(error, OSError):
                raise
            raise ModelNotFound(
                f"model {str(name_or_path)!r} is neither a local folder or file, nor a packaged model "
                f"({', '.join(names())}), nor could it be had from the hub: {error}"
            ) from error
    model.eval()
    return (model if device is None else model.to(device)), tokenizer


def _unreadable(source: _Source, error: Exception) -> InvalidModelFile:
    said = " ".join(str(error).split())
    place = source.location if source.gguf_file is None else os.path.join(source.location, source.gguf_file)
    return InvalidModelFile(
        f"model {place!r} cannot be loaded ({type(error).__name__}: {said[:300]}): its files are damaged, incomplete "
        "or of a kind that the installed transformers does not read; copy or download them again"
    )


class _Source(NamedTuple):
    location: str  #: what from_pretrained is given
    local: bool  #: nothing may be asked of the hub
    gguf_file: str | None = None


def _resolve(name_or_path: str | os.PathLike[str] | None) -> _Source:
    name = DEFAULT_MODEL if name_or_path is None else os.fspath(name_or_path)
    path = expanded(name)
    if path.is_dir():
        return _Source(str(path), local=True)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"model {name!r} is a file but not a .gguf file; give the folder that holds it")
        return _Source(str(path.resolve().parent), local=True, gguf_file=path.name)
    packaged = find(name)
    if packaged is not None:
        return _Source(str(exported(packaged)), local=True)
    if isinstance(name_or_path, os.PathLike) or name.endswith(".gguf") or name.startswith((".", "/", "~")):
        raise ModelNotFound(f"model {name!r}: no such file or folder")
    return _Source(name, local=False)


def _require_room(source: _Source, dtype: str | torch.dtype, device: str | torch.device | None) -> None:
    """Refuse weights that do not fit where they are read to, or where they go then.

    Raises:
        OutOfMemory: They do not.
    """
    import torch

    chosen = dtype if isinstance(dtype, torch.dtype) else None if dtype == "auto" else getattr(torch, dtype)
    location = Path(source.location) if source.gguf_file is None else Path(source.location) / source.gguf_file
    needed = memory.weights_bytes(location, chosen)
    if needed is None:
        return
    stored = "as stored" if chosen is None else f"in {str(chosen).removeprefix('torch.')}"
    remedy = "use a smaller model, or give device_map or quantization_config"
    if chosen is not None and chosen.itemsize > 2:
        half = memory.weights_bytes(location, torch.bfloat16) or 0
        remedy = f'dtype="bfloat16" needs {memory.gib(half)}; or {remedy}'
    for place in dict.fromkeys(["cpu", str(device or "cpu")]):
        memory.require(needed, f"model {str(location)!r} with weights {stored}", remedy, place)
