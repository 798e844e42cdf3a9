"""The command line. Every subcommand is a module of ``fastpower.commands`` with ``add_parser`` and ``run``.

Exit codes: 0 done, or nobody reads the output any more; 2 bad arguments or input, or a model that does
not fit; 3 the run failed; 130 interrupted (what was finished is printed).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import fastpower
from fastpower.errors import FastpowerError, Interrupted, OutOfMemory
from fastpower.terminal import (
    flush_stdout,
    give_stdout_up,
    nobody_reads_stdout,
    shown,
    write_what_cannot_be_encoded_as_escapes,
)

# Modules are imported before parsing, so none of them may import torch at its top.
COMMANDS = ("sample", "compare", "eval", "advise", "serve", "plot", "bench", "env", "completion")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastpower",
        description="Exact, fast sampling from the power distribution p(x)^alpha of a language model.",
        epilog='try: fastpower sample "What is 17 * 24?" --alpha 4 --max-new-tokens 128',
    )
    parser.add_argument("--version", action="version", version=f"fastpower {fastpower.__version__}")
    parser.set_defaults(parser=parser)  # for completion, which describes all of it
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"fastpower.commands.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    write_what_cannot_be_encoded_as_escapes()
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        flush_stdout()
    except Interrupted as stop:
        print(f"fastpower: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("fastpower: interrupted", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, OutOfMemory) as error:
        _say(f"error: {error}")
        return 2
    except (FastpowerError, OSError) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads_stdout():
            give_stdout_up()
            return 0
        _say(f"failed: {error}")
        if isinstance(error, OSError):  # it may have been standard output itself, on a full disk
            give_stdout_up()
        return 3
    return code


def _say(what: str) -> None:
    print(shown(f"fastpower: {what}", sys.stderr), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
