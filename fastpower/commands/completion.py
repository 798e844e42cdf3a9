"""``fastpower completion SHELL``: a script that completes subcommands, flags, choices and files, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fastpower.interfaces import interface

SHELLS = ("bash", "zsh", "fish")

_PATHS = ("PATH", "RUN", "FILE", "PATH_OR_NAME")  #: what arguments are called that name files


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a shell completion script",
        description='Print a completion script. bash, zsh: eval "$(fastpower completion bash)"; fish: … fish | source',
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(script(args.parser, args.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of one of ``SHELLS`` for the whole command line."""
    with interface("shtab"):
        from shtab import FILE, complete

    for action in _actions(parser):
        if action.metavar in _PATHS:
            action.complete = FILE  # type: ignore[attr-defined]  # where shtab looks for it
    return str(complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and all its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
