"""What every reading through transformers needs: one at a time, no bars, the file's own special tokens."""

from __future__ import annotations

import importlib.metadata
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastpower.errors import ModelNotFound
from fastpower.interfaces import changed, interface

# While it loads, transformers replaces functions of its own and of torch for the whole process (the tying of weights,
# initialisation, the default device). Two loads at once can leave them replaced: later models lose tied weights. Its
# first import from two threads at once can fail, too.
LOADING = threading.Lock()


def expanded(name: str) -> Path:
    """The path that a model's name is if it is one, with ~ for a home directory.

    Raises:
        ModelNotFound: ~ stands for the home of a user who has none.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        problem = f"model {name!r}: ~ leads nowhere, since that user has no home directory; give the whole path"
        raise ModelNotFound(problem) from None


def require_gguf() -> None:
    missing = [name for name in ("gguf", "accelerate") if not _installed(name)]
    if missing:
        raise ModelNotFound(f"GGUF files are read with packages that are missing: pip install {' '.join(missing)}")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def unpacked() -> dict[str, Any]:
    """Keywords of ``from_pretrained`` for a GGUF file whose weights become plain tensors.

    Left to itself, transformers may keep them in the file's blocks (its default has changed), which our products do
    not take from there and ``save_pretrained`` does not write.
    """
    with interface("transformers"):
        from transformers import GgufConfig
    if "dequantize" not in inspect.signature(GgufConfig).parameters:
        raise changed("transformers", "GgufConfig has no dequantize")
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for a second of work.

    Unpacking a packaged model keeps its bar, on a terminal.
    """
    with interface("transformers"):
        from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def special_tokens_of_model(tokenizer: Any, config: Any) -> None:
    """Give a tokenizer read from a GGUF file the special tokens of the model's configuration.

    Some versions of transformers guess the first and last token; the configuration has them from the file. A wrong one
    would end answers at the wrong token.
    """
    for name in ("bos", "eos"):
        token = getattr(config, f"{name}_token_id", None)
        if isinstance(token, int) and getattr(tokenizer, f"{name}_token_id") != token:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
