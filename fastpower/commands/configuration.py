"""``--config FILE``: a YAML file whose keys are the names of the flags; flags given beside it win."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpower.commands.options import flag_value
from fastpower.suggestions import unknown


def add_config(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a ``--config`` flag. Call it after all other arguments are added."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same names as these flags; flags win")
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        path = flag_value(list(args or []), "--config")
        if path is not None:
            try:
                parser.set_defaults(**read_config_file(parser, path))
            except (ValueError, FileNotFoundError, ImportError) as error:
                parser.error(str(error))
        return parse(args, namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def read_config_file(parser: argparse.ArgumentParser, path: str | Path) -> dict[str, Any]:
    """Values by destination, converted and checked as the flags themselves are.

    Raises:
        FileNotFoundError: No such file.
        ValueError: What is not YAML, an unknown key (nearest names suggested), a value of the wrong kind.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"config file {str(path)!r} does not exist")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"config file {str(path)!r} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config file {str(path)!r}: a mapping of flag names to values is needed")
    actions = {
        option.lstrip("-"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--config")
    }
    values = {}
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name not in actions:
            raise ValueError(f"config file {str(path)!r}: {unknown('key', name, actions)}")
        try:
            values[actions[name].dest] = _converted(actions[name], value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"config file {str(path)!r}: {key} = {value!r}: {error}") from None
    return values


def _converted(action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError("true or false is needed")
        return value
    if isinstance(action, argparse._AppendAction):
        one = action.type if callable(action.type) else str
        return [one(item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, (list, dict)):
        if action.dest not in ("methods", "task_options"):
            raise ValueError("one value is needed")
        return value
    if isinstance(value, bool):
        raise ValueError("a value is needed, not true or false")
    converted = action.type(str(value)) if callable(action.type) and value is not None else value
    if action.choices is not None and converted not in action.choices:
        raise ValueError(f"one of {', '.join(map(str, action.choices))} is needed")
    return str(converted) if action.type is None and converted is not None else converted
