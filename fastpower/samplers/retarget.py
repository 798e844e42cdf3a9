"""The same sampler for another target."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastpower.chains.chain import Sampler


def retargeted(sampler: Sampler, **changes: Any) -> Sampler:
    """``sampler`` with fields of its target replaced.

    Args:
        sampler: A data class with a ``target``, as all that come with fastpower.
        **changes: Fields of ``PowerTarget``, such as ``stop`` or ``horizon``.

    Raises:
        ValueError: A sampler that cannot be copied with another target.

    Examples:
        >>> from fastpower.samplers import make_sampler
        >>> retargeted(make_sampler("mh", max_new_tokens=9), stop=("x",)).target
        PowerTarget(alpha=4.0, horizon=9, schedule=(), stop=('x',))
    """
    target = dataclasses.replace(sampler.target, **changes)
    if target == sampler.target:
        return sampler
    known: list[str] = [f.name for f in dataclasses.fields(sampler)] if dataclasses.is_dataclass(sampler) else []
    if "target" not in known:
        raise ValueError(
            f"{type(sampler).__name__} is no data class with a target, so that {', '.join(changes)} cannot be set from "
            "outside: give it a PowerTarget that has it"
        )
    changed: Sampler = dataclasses.replace(sampler, target=target)  # type: ignore[type-var]
    return changed
