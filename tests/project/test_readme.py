"""README's Python runs as it stands, with a shorter horizon; examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import fastpower
from tests.project.code_blocks import ROOT, code_blocks, run_blocks

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "fastpower").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
BLOCKS = code_blocks(ROOT / "README.md", "python")


@pytest.mark.model
def test_readme_gives_an_exact_answer_from_a_loaded_transformers_model(
    smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("arviz")
    monkeypatch.chdir(tmp_path)
    blocks = [block._replace(source=block.source.replace("=256", "=6").replace("=32)", "=3)")) for block in BLOCKS]
    assert sum(block.source.count("=6") for block in blocks) >= 2, "the horizon of README's code was not found"
    model, tokenizer = smollm2
    with redirect_stdout(io.StringIO()) as printed:
        names = run_blocks(blocks, {"__name__": "__readme__", "hf_model": model, "tokenizer": tokenizer})
    results = names["results"]
    assert len(results) == 2 and all(r.exact and r.complete and r.method == "mh" and r.alpha == 4 for r in results)
    again = fastpower.generate(names["model"], "What is 17 * 24?", names["sampler"], seed=0, chains=2)
    assert [r.token_ids for r in again] == [r.token_ids for r in results]  # a text is one user turn
    assert again[0].text in printed.getvalue()  # what the first block printed, from the model by its name
    assert len(names["table"]) == 2 and names["chains"]["posterior"].sizes["chain"] == 2
    prompt = tokenizer("17 * 24 =")["input_ids"]
    assert names["ids"][0, : len(prompt)].tolist() == prompt and len(prompt) < names["ids"].shape[1] <= len(prompt) + 6


def test_readme_s_first_answer_takes_at_most_five_lines() -> None:
    assert len([line for line in BLOCKS[0].source.splitlines() if line.strip()]) <= 5


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(module, optionflags=options, extraglobs={"fastpower": fastpower})
    assert outcome.attempted > 0 and outcome.failed == 0


def test_no_docstring_example_is_skipped() -> None:
    assert len(MODULES) >= 9
    for name in MODULES:
        source = importlib.util.find_spec(name).origin  # type: ignore[union-attr]
        assert "doctest: +SKIP" not in Path(str(source)).read_text(encoding="utf-8")
