"""Names of other libraries: all are listed, and where one is gone the error says which library, version and name."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import fastpower
from fastpower.decoders.transformers import TransformersDecoder, layout
from fastpower.decoders.transformers.attention import register_attention
from fastpower.errors import InterfaceChanged
from fastpower.interfaces import _ERROR, INTERFACES, TRIED, interface, require, table
from fastpower.models.reading import unpacked
from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parents[2]
#: libraries whose names must be listed; numpy, rich, pandas and matplotlib are used by their documented names only
FOREIGN = TRIED.keys() - {"torch", "triton"}
IMPORTED = [i for i in INTERFACES if i.library in FOREIGN and re.fullmatch(r"[\w.]+", i.name)]


def imports() -> list[tuple[str, int, str, str, bool]]:
    """(file, line, library, name, guarded) of every import from another library: inside ``with interface``, or with
    something else to do where it is missing."""
    found = []
    for path in sorted((ROOT / "fastpower").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {id(inner) for node in ast.walk(tree) for inner in _guarded(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in FOREIGN:
                library, _, rest = node.module.partition(".")
                names = [".".join(filter(None, [rest, alias.name])) for alias in node.names]
                found += [(str(path.relative_to(ROOT)), node.lineno, library, n, id(node) in guarded) for n in names]
    return found


def _guarded(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr).startswith("interface("):
        yield from ast.walk(node)
    if isinstance(node, ast.Try) and any(ast.unparse(h.type or node) == "ImportError" for h in node.handlers):
        fallback = not any(isinstance(last, ast.Raise) for h in node.handlers for last in h.body[-1:])
        library = any(isinstance(inner, ast.Import) for inner in node.body)  # the library itself may be missing
        if fallback or library:
            yield from (inner for part in node.body for inner in ast.walk(part))


def test_every_name_that_is_imported_from_another_library_is_listed_and_guarded() -> None:
    listed = {(i.library, i.name.partition("(")[0]) for i in INTERFACES}
    found = imports()
    assert len(found) > 10
    missing = [place for place in found if (place[2], place[3]) not in listed and place[3] != "__version__"]
    assert not missing, "add to fastpower.interfaces.INTERFACES"
    # the grader's worker is a script that imports nothing of fastpower
    bare = [place for place in found if not place[4] and not place[0].endswith("equivalence_worker.py")]
    assert not bare, "put into `with interface(library):`"


def test_every_private_name_of_torch_is_listed() -> None:
    listed = " ".join(i.name for i in INTERFACES if i.library == "torch")
    for path in (ROOT / "fastpower").rglob("*.py"):
        for name in re.findall(r"\btorch\.(_(?!_version__)\w+)", path.read_text(encoding="utf-8")):
            assert name in listed, path


@pytest.mark.parametrize("entry", IMPORTED, ids=lambda i: f"{i.library}.{i.name}")
def test_a_listed_name_is_there_and_without_it_the_error_says_so(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(entry.library)
    *path, name = entry.name.split(".")
    owner: Any = importlib.import_module(".".join([entry.library, *path])) if path else module
    if entry.gone != _ERROR:  # there is something else to do where it is missing
        return
    with contextlib.suppress(ModuleNotFoundError):  # a submodule is there once somebody has imported it
        importlib.import_module(f"{owner.__name__}.{name}")
    assert hasattr(owner, name)
    if not isinstance(getattr(owner, name), ModuleType):  # Python finds a submodule whatever its package says
        _remove(owner, name, monkeypatch)
        if name == "PreTrainedTokenizerFast" and hasattr(owner, name):
            return  # transformers finds another class for tokenizers of that ending
        _check(owner, name, entry.library, getattr(module, "__version__", ""))


def _remove(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a module that loads its names when they are asked for."""
    monkeypatch.delattr(owner, name)
    lazy = vars(owner).get("_class_to_module", {})
    monkeypatch.setattr(owner, "_class_to_module", {n: m for n, m in lazy.items() if n != name}, raising=False)


def _check(owner: Any, name: str, library: str, version: str) -> None:
    program = f"from {owner.__name__} import {name}"
    with pytest.raises(InterfaceChanged) as caught, interface(library):
        exec(program)
    text = str(caught.value)
    assert name in text and version in text and TRIED[library][1] in text and "pip install" in text


def test_a_library_that_is_not_installed_stays_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError), interface("no_such_library"):
        import no_such_library  # noqa: F401


def test_the_page_of_limits_shows_the_table() -> None:
    rows = table().splitlines()
    assert len(rows) == len(INTERFACES) + 2 and all(row.count("|") == 5 for row in rows)


# ------------------------------------------------------------------------ what a user sees


def test_attention_that_cannot_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    _remove(sys.modules["transformers"], "AttentionInterface", monkeypatch)  # it may replace itself meanwhile
    register_attention.cache_clear()
    with pytest.raises(InterfaceChanged, match=f"transformers {transformers.__version__}.*AttentionInterface"):
        TransformersDecoder(model, cache_tokens=64)
    monkeypatch.undo()
    register_attention()


@pytest.mark.parametrize("name", ["_supports_attention_backend", "_can_set_attn_implementation"])
def test_a_model_class_without_what_we_ask_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    for kind in type(model).__mro__:
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    with pytest.raises(InterfaceChanged, match=name):
        TransformersDecoder(model, cache_tokens=64)


def test_configurations_that_keep_their_attention_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    class Renamed(type(model.config)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name == "_attn_implementation_internal":
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
            return super().__getattribute__(name)

    for module in model.modules():
        if hasattr(module, "config"):
            module.config.__class__ = Renamed
    with pytest.raises(InterfaceChanged, match="_attn_implementation_internal"):
        TransformersDecoder(model, cache_tokens=64)


@pytest.mark.parametrize(
    ("kind", "keyword", "declared"),
    [("mistral", "sliding_window", "sliding_window = 7"), ("gemma3", "softcap", "attn_logit_softcapping = 30.0")],
)
def test_a_keyword_of_attention_calls_that_is_called_something_else(
    kind: str, keyword: str, declared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paged path would leave it out, and a comparison on a short text would not notice."""
    model = tiny_model(kind)
    if keyword == "softcap":
        monkeypatch.setattr(model.config, "attn_logit_softcapping", 30.0)
    attend = layout._Recorder.attend

    def renamed(
        self: Any, module: Any, query: Any, key: Any, value: Any, scaling: Any, window: Any, softcap: Any
    ) -> Any:
        given = {"sliding_window": window, "softcap": softcap} | {keyword: None}
        return attend(self, module, query, key, value, scaling, given["sliding_window"], given["softcap"])

    monkeypatch.setattr(layout._Recorder, "attend", lambda self, *args, **kw: renamed(self, *args))
    with pytest.raises(InterfaceChanged, match=declared):
        TransformersDecoder(model, cache_tokens=64)


def test_compiled_steps_without_static_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._dynamo, "mark_static_address")
    with pytest.raises(InterfaceChanged, match=rf"torch {re.escape(torch.__version__)}.*mark_static_address"):
        TransformersDecoder(tiny_model("llama"), cache_tokens=64, compile="eager")


def test_gguf_weights_are_asked_for_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = unpacked()["quantization_config"]
    assert config.dequantize is True
    monkeypatch.setattr(sys.modules["transformers"], "GgufConfig", lambda gguf_file=None, **kwargs: None)
    with pytest.raises(InterfaceChanged, match="GgufConfig has no dequantize"):
        unpacked()


def test_require_gives_what_is_there() -> None:
    assert require(fastpower, "generate", "transformers") is fastpower.generate
