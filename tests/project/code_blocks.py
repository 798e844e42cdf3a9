"""Code blocks of Markdown pages, so that tests can run what the documentation shows.

A page's ``python`` blocks run from top to bottom in one namespace. A block that cannot run in a test (it needs a GPU, a
model hub, minutes) has the reason in a comment on the line above its fence, which a rendered page does not show:

    <!-- not run: needs a GPU -->
    ```python
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})[ \t]*(?P<language>[\w+-]*)[^`]*$")
_NOT_RUN = re.compile(r"^\s*<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->\s*$")


class CodeBlock(NamedTuple):
    """One fenced block of a page."""

    path: Path
    line: int  #: of its first line of code, counted from 1
    language: str  #: "" if the fence names none
    source: str
    not_run: str | None  #: why it is not run; None: it is

    @property
    def where(self) -> str:
        return f"{os.path.relpath(self.path, ROOT)}:{self.line}"


def code_blocks(path: Path, *languages: str) -> list[CodeBlock]:
    """The fenced blocks of a page, in order; with ``languages``, only those. Raises ValueError for an open fence and
    for a "not run" comment that is not directly above one."""
    blocks: list[CodeBlock] = []
    reason: str | None = None
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            if reason is not None:
                raise ValueError(f"{path}:{number}: a 'not run' comment must stand directly above a fence")
            comment = _NOT_RUN.match(line)
            reason = comment["reason"] if comment else None
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == fence["ticks"]:
                break
            body.append(inner)
        else:
            raise ValueError(f"{path}:{number}: fence is never closed")
        source = textwrap.dedent("\n".join(body)) + "\n"
        if not languages or fence["language"] in languages:
            blocks.append(CodeBlock(path, number + 1, fence["language"], source, reason))
        reason = None
    return blocks


def compiled(block: CodeBlock) -> Any:
    """A Python block as a code object whose tracebacks name the page and its line. Raises SyntaxError."""
    # dont_inherit: a page has not the __future__ imports of this file
    return compile("\n" * (block.line - 1) + block.source, str(block.path), "exec", dont_inherit=True)


def run_blocks(blocks: Iterable[CodeBlock], namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run Python blocks one after the other in one namespace, which is returned; those marked "not run" are skipped."""
    namespace = {"__name__": "__documentation__"} if namespace is None else namespace
    for block in blocks:
        if block.not_run is None:
            exec(compiled(block), namespace)
    return namespace


def commands(blocks: Iterable[CodeBlock], program: str) -> list[tuple[CodeBlock, list[str]]]:
    """The arguments of every call of ``program`` in shell blocks. Lines that end in a backslash are joined; comments,
    pipes and redirections are dropped. A line with a bare … among its words is a sketch, not a call."""
    found = []
    for block in blocks:
        for line in block.source.replace("\\\n", " ").splitlines():
            call = line.strip().removeprefix("$ ")
            if not call.startswith(program + " ") or " … " in f"{call} ":
                continue
            lexer = shlex.shlex(call, posix=True, punctuation_chars="|<>&;")
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((i for i, word in enumerate(words) if set(word) <= set("|<>&;")), len(words))
            found.append((block, words[1:end]))
    return found
