"""``fastpower completion SHELL``: a script that completes subcommands, flags and their choices."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_fastpower() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  case "${{COMP_WORDS[1]}} $previous" in
{values}
    *) case "${{COMP_WORDS[1]}}" in
{flags}
      esac ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; fi
  if [ "$words" = FILES ]; then
    COMPREPLY=($(compgen -f -- "$current"))
  else
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
}}
complete -o filenames -F _fastpower fastpower
"""

_PATHS = ("PATH", "RUN", "FILE", "PATH_OR_NAME")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a shell completion script",
        description='Print a completion script. bash, zsh: eval "$(fastpower completion bash)"; fish: … fish | source',
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    print(script(args.parser, args.shell), end="")
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of one of ``SHELLS`` for the whole command line."""
    commands = _subcommands(parser)
    if shell == "fish":
        return "".join(_fish(commands))
    flags, values = [], []
    for name, command in commands.items():
        words = [flag for action in command._actions for flag in action.option_strings if flag.startswith("--")]
        words += [str(c) for action in command._actions if not action.option_strings for c in action.choices or ()]
        flags.append(f'        {name}) words="{" ".join(words)}" ;;')
        for action in command._actions:
            offered = " ".join(map(str, action.choices)) if action.choices else ""
            offered = offered or ("FILES" if action.metavar in _PATHS else "")
            values += [f'    "{name} {f}") words="{offered}" ;;' for f in action.option_strings if offered]
    bash = _BASH.format(values="\n".join(values), flags="\n".join(flags), commands=" ".join(commands))
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash if shell == "zsh" else bash


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _fish(commands: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield f'complete -c fastpower -n __fish_use_subcommand -f -a "{" ".join(commands)}"\n'
    for name, command in commands.items():
        for action in command._actions:
            for flag in action.option_strings:
                if flag.startswith("--"):
                    text = (action.help or "").replace("\\", "\\\\").replace("'", "\\'") % {"default": action.default}
                    line = f"complete -c fastpower -n '__fish_seen_subcommand_from {name}' -l {flag[2:]} -d '{text}'"
                    yield line + (f" -x -a '{' '.join(map(str, action.choices))}'" if action.choices else "") + "\n"
