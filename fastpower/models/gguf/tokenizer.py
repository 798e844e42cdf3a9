"""The tokenizer that a GGUF file holds, made by transformers' own code for such files."""

from __future__ import annotations

from typing import Any

from fastpower.interfaces import interface
from fastpower.models.gguf.header import GGUFFile
from fastpower.models.reading import LOADING, no_progress_bars

#: names that transformers gives to the metadata of a tokenizer
_KEYS = {
    "tokenizer_type": "model",
    "pre_tokenizer_type": "pre",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unk_token_id": "unknown_token_id",
    "pad_token_id": "padding_token_id",
    "add_prefix_space": "add_space_prefix",
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_of(file: GGUFFile) -> Any:
    """A fast tokenizer of transformers, equal to the one of ``AutoTokenizer.from_pretrained(…, gguf_file=…)``.

    That function reads the header several times, seconds each for a large vocabulary; here it has been read already.
    """
    with LOADING, no_progress_bars():
        try:
            from transformers.integrations.gguf import convert_gguf_tokenizer
        except ImportError:  # an earlier transformers: slower
            with interface("transformers"):
                from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name, local_files_only=True)
        with interface("transformers"):
            from transformers import PreTrainedTokenizerFast

        metadata = file.metadata
        keys = {ours: f"tokenizer.ggml.{key}" for ours, key in _KEYS.items()}
        found = {ours: metadata[key] for ours, key in keys.items() if key in metadata}
        tokenizer, more = convert_gguf_tokenizer(metadata["general.architecture"], found)
        settings: dict[str, Any] = {"chat_template": metadata.get("tokenizer.chat_template")}
        for name in ("add_bos_token", "add_eos_token"):
            if f"tokenizer.ggml.{name}" in metadata:
                settings[name] = metadata[f"tokenizer.ggml.{name}"]
        if found.get("tokenizer_type") == "llama":  # without a flag such vocabularies begin with BOS
            settings.setdefault("add_bos_token", True)
        for name, key in _SPECIAL.items():
            token = metadata.get(f"tokenizer.ggml.{key}_token_id")
            tokens = found["tokens"]
            settings[f"{name}_token"] = tokens[token] if token is not None and token < len(tokens) else None
        made = PreTrainedTokenizerFast(tokenizer_object=_Given(tokenizer), **settings, **more)
    made.name_or_path = str(file.path)  # if it had a name while it was made, transformers might ask the hub about it
    return made


def end_tokens(file: GGUFFile) -> frozenset[int]:
    """Tokens that end an answer: end of text and, where the file names one, end of a turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return frozenset(int(file.metadata[key]) for key in keys if key in file.metadata)


class _Given:
    """A tokenizer that is handed over, not copied: transformers deep-copies what it is given, half a second."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._tokenizer
