"""Files of prompts: one a line, as text or as JSON objects."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = ("prompt", "messages", "token_ids")


@dataclass(frozen=True)
class Asked:
    """One line of a file.

    Attributes:
        prompt: Text, a conversation, or token ids.
        name: The ``id`` that the line gives; None: the prompt's content names it.
    """

    prompt: Any
    name: str | None = None


def read_prompts(path: str) -> list[Asked]:
    """The prompts of a file, or of standard input where ``path`` is ``-``.

    A line that begins with ``{`` is a JSON object with ``prompt`` (text), ``messages`` (a conversation) or
    ``token_ids``, and perhaps ``id`` and ``system``; any other line is text. Blank lines are left out, as is a byte
    order mark.

    Raises:
        FileNotFoundError: No such file.
        ValueError: a line that is no prompt, naming it; names given twice; nothing at all.
    """
    if path == "-":
        found = _lines(sys.stdin, "standard input")
    else:
        if not Path(path).is_file():
            raise FileNotFoundError(f"--prompts {path!r}: no such file")
        try:
            with open(path, encoding="utf-8-sig") as lines:
                found = _lines(lines, path)
        except UnicodeDecodeError as error:
            raise ValueError(f"--prompts {path!r} is not UTF-8 text: {error}") from None
    if not found:
        raise ValueError(f"--prompts {path!r} holds no prompt: write one a line")
    names = [asked.name for asked in found if asked.name is not None]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--prompts {path!r} has two prompts with the id {twice!r}")
    return found


def _lines(lines: Iterable[str], where: str) -> list[Asked]:
    found = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            found.append(_parsed(text, f"{where}, line {number}") if text.lstrip().startswith("{") else Asked(text))
    return found


def _parsed(text: str, where: str) -> Asked:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} begins with {{ but is not JSON: {error}") from None
    given = [key for key in KEYS if key in fields]
    if len(given) != 1:
        raise ValueError(f"{where} needs exactly one of {', '.join(KEYS)}; it has {', '.join(fields) or 'nothing'}")
    unknown = set(fields) - {*KEYS, "id", "system"}
    if unknown:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))}")
    prompt, name, system = fields[given[0]], fields.get("id"), fields.get("system")
    if name is not None and not (isinstance(name, str | int) and not isinstance(name, bool) and str(name)):
        raise ValueError(f"{where}: id must be text or a whole number, got {name!r}")
    if not isinstance(prompt, str if given[0] == "prompt" else list) or not prompt:
        raise ValueError(f"{where}: {given[0]} = {prompt!r} is empty or of the wrong kind")
    if system is not None:
        prompt = with_system(prompt, str(system))
    return Asked(prompt, None if name is None else str(name))


def with_system(prompt: Any, system: str) -> Any:
    """The prompt as a conversation that begins with ``system``.

    Raises:
        ValueError: Token ids, or a conversation that has a system message already.
    """
    if isinstance(prompt, str):
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    if not all(isinstance(message, dict) for message in prompt):
        raise ValueError("a system message cannot be put before token ids: give the prompt as text")
    if any(message.get("role") == "system" for message in prompt):
        raise ValueError("the conversation has a system message already: leave --system out")
    return [{"role": "system", "content": system}, *prompt]


def with_prefill(prompt: Any, beginning: str) -> Any:
    """The prompt as a conversation whose answer begins with ``beginning``.

    Raises:
        ValueError: Token ids, or a conversation that ends with the assistant already.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not all(isinstance(message, dict) for message in turns):
        raise ValueError("an answer's beginning cannot be put behind token ids: append its tokens to them")
    if turns[-1].get("role") == "assistant":
        raise ValueError("the conversation ends with the assistant's words already: leave --prefill out")
    return [*turns, {"role": "assistant", "content": beginning}]
