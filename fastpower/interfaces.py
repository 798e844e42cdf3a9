"""What fastpower takes from other libraries by name, and an error that says so where a release has renamed it.

``INTERFACES`` is the whole list (tests compare it with the sources); documentation shows it as a table. Imports of
those names stand in ``with interface(library):``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastpower.errors import InterfaceChanged

#: releases that the tests were run with, oldest and newest
TRIED = {
    "transformers": ("5.17.0", "5.24.0"),
    "torch": ("2.11.0", "2.13.0"),
    "triton": ("3.6.0", "3.9.0"),
    "lm_eval": ("0.4.10", "0.4.13"),
    "ray": ("2.40.0", "2.60.0"),
    "arviz": ("0.20.0", "1.3.0"),
    "reasoning_gym": ("0.1.19", "0.1.25"),
    "math_verify": ("0.8.0", "0.9.0"),
    "flash_attn": ("2.8.3", "2.8.3"),
    "datasets": ("5.2.0", "5.2.0"),
    "llama_cpp": ("0.3.36", "0.3.36"),
    "shtab": ("1.13.0", "1.13.0"),
}


class Interface(NamedTuple):
    """One name of another library."""

    library: str  #: as it is imported
    name: (
        str  #: dotted, from the library on; "Class(keyword)" for a keyword, "object → attribute" for what an object has
    )
    use: str  #: what fastpower does with it
    gone: str  #: what happens where it is missing


_ERROR = "an error that names library, version and name"
INTERFACES = (
    Interface("transformers", "AutoModelForCausalLM", "loads models", _ERROR),
    Interface("transformers", "AutoTokenizer", "loads tokenizers", _ERROR),
    Interface("transformers", "GgufConfig(dequantize)", "GGUF weights are unpacked, never left in blocks", _ERROR),
    Interface("transformers", "PreTrainedTokenizerFast", "tokenizers of GGUF files", _ERROR),
    Interface(
        "transformers",
        "integrations.gguf.convert_gguf_tokenizer",
        "the same",
        "AutoTokenizer reads the file once more, seconds longer",
    ),
    Interface("transformers", "AttentionInterface", "attention over pages is registered by name", _ERROR),
    Interface("transformers", "Cache", "a decoding loop's K/V cache is known by its class, not by its keyword", _ERROR),
    Interface("transformers", "utils.ModelOutput", "the output of custom_generate", _ERROR),
    Interface("transformers", "utils.logging", "no bar for a second of loading", _ERROR),
    Interface(
        "transformers", "model → _supports_attention_backend", "does its attention go through the registry?", _ERROR
    ),
    Interface("transformers", "model → _can_set_attn_implementation", "the same", _ERROR),
    Interface("transformers", "config → _attn_implementation_internal", "exchanged for as long as a forward", _ERROR),
    Interface("transformers", "config → get_text_config", "the text part of a model's configuration", _ERROR),
    Interface(
        "transformers",
        "attention(scaling, sliding_window, softcap)",
        "keywords of an attention call",
        "models that declare a window or a soft cap are refused when their attention is not told of it",
    ),
    Interface(
        "transformers",
        "forward(position_ids, use_cache, logits_to_keep)",
        "keywords of a packed forward",
        "the model is refused with the words of the TypeError",
    ),
    Interface(
        "transformers",
        "models.llama.modeling_llama and its like",
        "module names of the fused forward",
        "the model runs through transformers' modules, slower (`fastpower bench` shows it)",
    ),
    Interface(
        "transformers",
        "generation_config → eos_token_id, pad_token_id, max_length",
        "read by custom_generate",
        "an AttributeError of transformers' own",
    ),
    Interface(
        "transformers",
        "tokenizer → all_special_tokens",
        "stop strings that are special tokens",
        "they end no answer",
    ),
    Interface(
        "transformers",
        "StopStringCriteria → stop_strings",
        "stop strings of a call, for custom_generate",
        _ERROR,
    ),
    Interface("torch", "_dynamo.mark_static_address", "compiled steps find the cache where it was", _ERROR),
    Interface(
        "torch",
        "Tensor.__dlpack_c_exchange_api__",
        "tensors are handed to C++ as they are (DLPack's C exchange API)",
        "façades go the long way: 10 µs a call more, the same results",
    ),
    Interface(
        "torch",
        "_subclasses.fake_tensor.FakeTensor",
        "tensors without memory are known by their class",
        "an ImportError when kernels are imported",
    ),
    Interface("torch", "library.Library", "operators are known to torch.compile", "an error of torch's own"),
    Interface("torch", "library.register_fake", "the same", "an error of torch's own"),
    Interface(
        "torch",
        "Module → _forward_hooks, _forward_pre_hooks; Tensor → _version",
        "hooks switch the fused forward off, rewritten weights are packed again",
        "an AttributeError when a model is loaded",
    ),
    Interface(
        "triton",
        "language.*, jit, cdiv, next_power_of_2",
        "kernels",
        "Triton's compilation error names it; `make compat` runs the interpreter's tests on 3.6 to 3.9",
    ),
    Interface("lm_eval", "models", "the harness's own models, registered beside ours", _ERROR),
    Interface("lm_eval", "api.model.LM", "base class of the harness's model", _ERROR),
    Interface("lm_eval", "api.registry.register_model", "its name in the harness", _ERROR),
    Interface("lm_eval", "__main__.cli_evaluate", "the harness's own command line", _ERROR),
    Interface("ray", "data.from_items", "items to workers", _ERROR),
    Interface("ray", "data.ActorPoolStrategy", "one model per worker", _ERROR),
    Interface("ray", "data.DataContext", "no bars, results as they come", _ERROR),
    Interface("arviz", "from_dict", "chains for ArviZ, before and after its 1.0", _ERROR),
    Interface("shtab", "complete", "completion scripts", _ERROR),
    Interface("shtab", "FILE", "arguments that name files", _ERROR),
    Interface("reasoning_gym", "create_dataset", "procedural tasks", _ERROR),
    Interface("reasoning_gym", "factory.DATASETS", "their names and options", _ERROR),
    Interface("math_verify", "parse", "grading", "the grader says that it did not start"),
    Interface("math_verify", "verify", "grading", "the grader says that it did not start"),
    Interface("flash_attn", "flash_attn_with_kvcache", "attention of the flash backend", _ERROR),
    *(
        Interface("llama_cpp", f"llama_cpp.{name}", use, _ERROR)
        for use, names in {
            "the model: loading, facts, giving back": (
                "llama_model_default_params",
                "llama_model_load_from_file",
                "llama_model_free",
                "llama_model_is_recurrent",
                "llama_model_is_hybrid",
                "llama_model_has_encoder",
                "llama_model_n_ctx_train",
                "llama_model_get_vocab",
            ),
            "the context and its one K/V cache": (
                "llama_context_default_params",
                "llama_init_from_model",
                "llama_free",
                "llama_n_ctx",
                "llama_max_parallel_sequences",
                "llama_get_memory",
            ),
            "fork": ("llama_memory_seq_cp",),
            "truncate and free": ("llama_memory_seq_rm",),
            "forward and score": ("llama_batch", "llama_decode", "llama_get_logits"),
            "tokens and texts": ("llama_vocab_n_tokens", "llama_vocab_is_eog", "llama_tokenize", "llama_detokenize"),
            "what it says, kept for errors": ("llama_backend_init", "llama_log_callback", "llama_log_set"),
        }.items()
        for name in names
    ),
    Interface("datasets", "load_dataset", "tasks that come from a hub", "an error that names the task and a remedy"),
)


@contextmanager
def interface(library: str) -> Iterator[None]:
    """For code that takes names from ``library``: where one is missing, InterfaceChanged instead of what Python says.

    A library that is not installed stays an ImportError of its own.
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] != library:
            raise
        if importlib.util.find_spec(library) is None:
            raise
        raise changed(library, str(error)) from error


def changed(library: str, what: str) -> InterfaceChanged:
    """The error for a name of ``library`` that is not there any more; ``what`` says which."""
    version = getattr(importlib.import_module(library), "__version__", None) or _version(library)
    oldest, newest = TRIED[library]
    package = library.replace("_", "-")
    return InterfaceChanged(
        f"{package} {version} has changed what fastpower relies on: {what}. It was tried with {package} {oldest} to "
        f"{newest}: pip install '{package}>={oldest},<={newest}'"
    )


def require(owner: Any, attribute: str, library: str) -> Any:
    """``owner.attribute``, or InterfaceChanged."""
    with interface(library):
        return getattr(owner, attribute)


def page() -> str:
    """The documentation's page: releases tried, and INTERFACES."""
    tried = [f"| {library.replace('_', '-')} | {oldest} | {newest} |" for library, (oldest, newest) in TRIED.items()]
    return "\n".join(
        [
            "# Other libraries",
            "",
            "What fastpower relies on in other libraries beyond their everyday use, made from `fastpower.interfaces`.",
            "Where a release has renamed something, the error names library, version and name; `make compat` looks for",
            "that before a user does.",
            "",
            "## Releases tried",
            "",
            "| Library | Oldest | Newest |",
            "|---|---|---|",
            *tried,
            "",
            "## Names",
            "",
            table(),
            "",
        ]
    )


def table() -> str:
    """INTERFACES as a table in Markdown."""
    rows = [f"| {i.library} | `{i.name}` | {i.use} | {i.gone} |" for i in INTERFACES]
    return "\n".join(["| Library | Name | What for | Where it is missing |", "|---|---|---|---|", *rows])


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"
