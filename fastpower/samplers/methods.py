"""Methods as a user writes them: ``mh``, ``mh(moves=4,block=32)``, a list of them separated by commas."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastpower.suggestions import unknown

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler

_SPEC = re.compile(r"([A-Za-z_][\w-]*)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Method:
    """A sampler's name, its own settings, and the label that its records carry."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        inside = ",".join(f"{key}={value}" for key, value in sorted(self.settings.items()))
        return f"{self.name}({inside})" if inside else self.name

    def sampler(self, alpha: float, max_new_tokens: int, shared: Mapping[str, Any] | None = None) -> Sampler:
        """The sampler. ``shared`` settings apply where the method has them and does not set them itself.

        Raises:
            ValueError: An unknown method, setting or value.
        """
        from fastpower.samplers import METHODS, make_sampler

        if self.name not in METHODS:
            raise ValueError(unknown("method", self.name, METHODS))
        known = inspect.signature(METHODS[self.name]).parameters
        settings = {k: v for k, v in (shared or {}).items() if v is not None and k in known} | dict(self.settings)
        settings = {"alpha": alpha, "max_new_tokens": max_new_tokens} | settings
        return make_sampler(self.name, **settings)


def parse_methods(specs: str | Sequence[str | Mapping[str, Any]]) -> list[Method]:
    """``"plain,mh(moves=4)"``, a list of such texts, or mappings ``{"name": "mh", "moves": 4}`` (as in YAML).

    Raises:
        ValueError: Text that is not of this form, and a method given twice.

    Examples:
        >>> [method.label for method in parse_methods("plain, mh(moves=4, block=32)")]
        ['plain', 'mh(block=32,moves=4)']
    """
    methods: list[Method] = []
    for spec in [specs] if isinstance(specs, str) else specs:
        if isinstance(spec, Mapping):
            settings = dict(spec)
            if "name" not in settings:
                raise ValueError(f"method {dict(spec)!r} needs a name")
            methods.append(Method(str(settings.pop("name")), settings))
        else:
            methods += [_parse(part) for part in _split(spec)]
    if not methods:
        raise ValueError("no method given: for example --methods plain,low_temperature,mh")
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"method {label!r} is given twice")
    return methods


def _split(text: str) -> list[str]:
    """Cut at commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _parse(text: str) -> Method:
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ValueError(f"method {text!r} is not of the form name or name(setting=value,…)")
    return Method(match[1].replace("-", "_"), parse_options(match[2] or ""))


def parse_options(text: str) -> dict[str, Any]:
    """``"a=1,b=x"`` as ``{"a": 1, "b": "x"}``: Python literals where they are, text otherwise."""
    options: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"setting {part!r} is not of the form name=value")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = {"true": True, "false": False}.get(value.strip().lower(), value.strip())
    return options


def sampler_named(
    spec: str, *, alpha: float | None = None, max_new_tokens: int | None = None, **settings: Any
) -> Sampler:
    """The sampler that a text such as ``"mh"`` or ``"mh(moves=4,alpha=2)"`` means, the same by every door.

    Args:
        spec: One method, as ``parse_methods`` reads it.
        alpha: Exponent where the text sets none; default 4.
        max_new_tokens: Horizon where the text sets none; default 512.
        **settings: The method's other settings, where the text does not set them; None keeps the default.

    Raises:
        ValueError: No method or several, unknown ones, settings that the method does not have.
    """
    from fastpower.samplers import make_sampler

    methods = parse_methods(spec)
    if len(methods) != 1:
        raise ValueError(f"{spec!r} names {len(methods)} methods where one sampler is needed")
    given = {"alpha": alpha, "max_new_tokens": max_new_tokens, **settings} | dict(methods[0].settings)
    given = {name: value for name, value in given.items() if value is not None}
    return make_sampler(methods[0].name, **given)
