"""What the documentation shows is true: Python blocks run, commands parse."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from fastpower.cli import build_parser
from fastpower.samplers.methods import parse_methods
from tests.project.code_blocks import ROOT, CodeBlock, code_blocks, commands, compiled, run_blocks

PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = {page.stem: blocks for page in PAGES if (blocks := code_blocks(page, "python"))}
CALLS = [
    call
    for page in [ROOT / "README.md", *PAGES]
    for call in commands(code_blocks(page, "", "sh", "bash", "shell", "console"), "fastpower")
]


@pytest.mark.parametrize("page", [name for name, blocks in PYTHON.items() if any(b.not_run is None for b in blocks)])
def test_python_blocks_of_a_page_run_in_order(page, request, tmp_path, monkeypatch):
    blocks = PYTHON[page]
    if any("fastpower.load()" in block.source for block in blocks if block.not_run is None):
        packaged = request.getfixturevalue("smollm2")  # skips where it is not installed
        monkeypatch.setattr("fastpower.language_model.load_model", lambda *_, **__: packaged)  # read once a session
    monkeypatch.chdir(tmp_path)  # a block may write files
    run_blocks(blocks)


NOT_RUN = [block for blocks in PYTHON.values() for block in blocks if block.not_run is not None]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.where)
def test_a_block_that_is_not_run_still_compiles_and_imports_names_that_exist(block):
    compiled(block)
    for node in ast.walk(ast.parse(block.source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastpower":
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastpower":
            assert hasattr(importlib.import_module("fastpower"), node.attr), node.attr


@pytest.mark.parametrize(("block", "arguments"), CALLS, ids=[block.where for block, _ in CALLS])
def test_a_command_that_is_shown_parses_and_its_methods_exist(block, arguments):
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(SystemExit, match="0"):
            build_parser().parse_args(arguments)
        return
    args = build_parser().parse_args(arguments)
    for method in parse_methods(getattr(args, "methods", None) or "plain"):
        method.sampler(4.0, 512, {"block": getattr(args, "block", None), "moves": getattr(args, "moves", None)})


def test_commands_are_found_at_all():
    assert len(CALLS) >= 6


def page(tmp_path: Path, text: str) -> list[CodeBlock]:
    (tmp_path / "page.md").write_text(text)
    return code_blocks(tmp_path / "page.md")


def test_a_block_that_fails_names_the_page_and_its_line(tmp_path):
    blocks = page(tmp_path, "# Title\n\n```python\nx = 1\n```\ntext\n```python\ny = x\n\nassert y == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run_blocks(blocks)
    last = failure.traceback[-1]
    assert (Path(str(last.path)).name, last.lineno + 1) == ("page.md", 10)


def test_a_block_is_left_out_for_a_reason_directly_above_it_only(tmp_path):
    blocks = page(tmp_path, "<!-- not run: needs a GPU -->\n```python\n1 / 0\n```\n```python\nx = 3\n```\n")
    assert [block.not_run for block in blocks] == ["needs a GPU", None]
    assert run_blocks(blocks)["x"] == 3
    with pytest.raises(ValueError, match=r"page.md:2: a 'not run' comment must stand directly above a fence"):
        page(tmp_path, "<!-- not run: needs a GPU -->\n\n```python\n1 / 0\n```\n")


def test_an_open_fence_is_an_error_and_other_languages_are_not_python(tmp_path):
    with pytest.raises(ValueError, match=r"page.md:1: fence is never closed"):
        page(tmp_path, "```python\nx = 1\n")
    page(tmp_path, "```sh\nrm x\n```\n```python\nx = 1\n```\n")
    assert [block.source for block in code_blocks(tmp_path / "page.md", "python")] == ["x = 1\n"]


def test_calls_lose_comments_and_redirections_and_sketches_are_no_calls(tmp_path):
    whole = 'fastpower eval --n 3 \\\n  --task x > out  # why\n$ fastpower sample "a # b" "…" | wc\n'
    calls = commands(page(tmp_path, f"```\n{whole}fastpower eval … --n 4\n```\n"), "fastpower")
    assert [words for _, words in calls] == [["eval", "--n", "3", "--task", "x"], ["sample", "a # b", "…"]]
