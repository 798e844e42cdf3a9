"""Pages that are made from something else, so that they cannot drift from it: the command line's reference from its
parsers, names of other libraries from their list, Contributing and Changelog from files of the repository's root."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]

_INTRODUCTION = """\
# Command line

`fastpower COMMAND`, or `python -m fastpower COMMAND`. Every command explains itself with `--help`; this page is made
from the same parsers.

Exit codes: 0 done; 2 bad arguments or input, found before anything is computed; 3 the run failed; 130 interrupted (what
was finished is kept or printed).
"""


def command_line_page(parser: argparse.ArgumentParser) -> str:
    """Markdown for a parser with subcommands: usage, argument tables and examples of each."""
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = [_INTRODUCTION, *_tables(parser, skip=(commands,))]
    for name, command in commands.choices.items():
        parts.append(f"## {parser.prog} {name}\n")
        parts.append(_text(command.description or "") + "\n")
        parts.append(f"```\n{_usage(command)}\n```\n")
        parts += _tables(command)
        if command.epilog:
            parts.append(_epilog(command.epilog))
    return "\n".join(parts)


def _usage(command: argparse.ArgumentParser) -> str:
    words = [command.prog]
    for action in command._actions:
        if not action.option_strings:
            word = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest)
            words.append(f"{word} [{word} …]" if action.nargs == "+" else word)
    return " ".join([*words, "[options]"] if len(command._option_string_actions) > 2 else words)  # -h and --help


def _tables(parser: argparse.ArgumentParser, skip: tuple[argparse.Action, ...] = ()) -> list[str]:
    """One table per group of arguments that has any. ``--help`` goes without saying."""
    tables = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action not in skip and action.dest != "help"]
        if actions:
            rows = [f"| {_name(action)} | {_meaning(action)} |" for action in actions]
            title = {"positional arguments": "Arguments", "options": "Options"}.get(
                group.title or "", group.title or ""
            )
            tables.append("\n".join([f"| {title.capitalize()} | |", "|---|---|", *rows]) + "\n")
    return tables


def _name(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        value = " " + (
            "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
        )
    return "<br>".join(f"`{flag}{value}`".replace("|", "\\|") for flag in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default, "prog": "fastpower"}
    if action.choices and not action.option_strings:
        text = f"one of {', '.join(map(str, action.choices))}. {text}"
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup."""
    return re.sub(r"([\\`*_{}<>\[\]#$])", r"\\\1", text.strip())


def _epilog(epilog: str) -> str:
    """ "examples:" and its indented lines as a code block, other paragraphs as text."""
    parts = []
    for paragraph in epilog.strip().split("\n\n"):
        head, _, rest = paragraph.partition("\n")
        if head == "examples:":
            parts.append("```\n" + "\n".join(line.removeprefix("  ") for line in rest.splitlines()) + "\n```\n")
        else:
            parts.append("\n".join(_text(line) + "  " for line in paragraph.splitlines()) + "\n")
    return "\n".join(parts)


def on_files(files: Files, *, config: Any) -> Files:
    """MkDocs calls this with the pages it found."""
    from fastpower import interfaces
    from fastpower.cli import build_parser

    pages = {
        "command_line.md": command_line_page(build_parser()),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "libraries.md": interfaces.page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files
