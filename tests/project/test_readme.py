"""README's Python runs as it stands, with a shorter horizon; examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import fastpower
from fastpower.cli import build_parser
from fastpower.commands import demo
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


# ------------------------------------------------------------------------ lines for a shell

SHELL = code_blocks(ROOT / "README.md", "", "sh", "bash", "shell", "console")
LINES = [line for block in SHELL for line in block.source.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("line", LINES)
def test_a_shell_line_of_readme_works_as_printed_from_a_checkout(line: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)
    match words[:2]:
        case ["make", target]:
            done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout, done.stderr
        case ["pip", "install"]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            [what] = [word for word in words[2:] if not word.startswith("-")]
            extras = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", what)
            assert extras, f"{what}: there is no release yet, so only the checkout can be installed"
            assert set(filter(None, (extras[1] or "").split(","))) <= set(project["optional-dependencies"])
        case ["fastpower", command]:
            end = next((i for i, word in enumerate(words) if set(word) <= set("|<>&;")), len(words))
            arguments = words[1:end]
            if "--help" in arguments or command == "env":  # these cost nothing, so they run
                done = subprocess.run(
                    [sys.executable, "-m", "fastpower", *arguments],
                    env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0 and done.stdout, done.stderr
            else:
                assert build_parser().parse_args(arguments).command == command
        case _:
            pytest.fail(f"nothing checks this line: {line}")


def test_every_block_of_readme_is_checked() -> None:
    languages = {block.language for block in code_blocks(ROOT / "README.md")}
    assert languages <= {"", "python", "text"}, "a language that no test runs"
    assert not [block.where for block in code_blocks(ROOT / "README.md") if block.not_run]


@pytest.mark.model
def test_what_readme_says_the_demo_prints_is_what_it_prints(
    smollm2: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for seconds. Right answers are compared, not log p: another instruction set rounds differently."""
    [block] = code_blocks(ROOT / "README.md", "text")
    ready = fastpower.load(*smollm2)
    monkeypatch.setattr(fastpower, "load", lambda: ready)
    demo.main([])
    printed, shown = capsys.readouterr().out.splitlines(), block.source.splitlines()
    assert printed[:4] == shown[:4]
    for row, expected in zip(printed[4:8], shown[4:8], strict=True):
        assert row[:41] == expected[:41]
        counts = [int(re.search(r" (\d+)/12 ", line)[1]) for line in (row, expected)]  # type: ignore[index]
        assert abs(counts[0] - counts[1]) <= 2


def test_inline_commands_of_pages_install_from_the_checkout_too() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        assert not re.search(r"pip install [\"']?fastpower", page.read_text(encoding="utf-8")), page
    for module in (ROOT / "fastpower").rglob("*.py"):
        assert not re.search(r"pip install [\"']?fastpower", module.read_text(encoding="utf-8")), module
