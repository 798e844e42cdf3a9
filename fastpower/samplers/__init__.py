"""The samplers, and the names by which the command line knows them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from fastpower.chains.chain import Sampler
from fastpower.samplers.baselines import BestOfN, LowTemperature, Plain
from fastpower.samplers.egps import EntropyGuided
from fastpower.samplers.lookahead import AuxiliaryParticles, Lookahead
from fastpower.samplers.marginal import MarginalSharpening
from fastpower.samplers.metropolis import EntropyCut, MetropolisHastings
from fastpower.samplers.multiple_try import MultipleTry
from fastpower.samplers.smc import ConditionalSMC, ParticleMH, PowerSMC
from fastpower.samplers.staged import Staged
from fastpower.samplers.tempering import ParallelTempering
from fastpower.target import PowerTarget, stop_strings

__all__ = [
    "METHODS",
    "AuxiliaryParticles",
    "BestOfN",
    "ConditionalSMC",
    "EntropyCut",
    "EntropyGuided",
    "Lookahead",
    "LowTemperature",
    "MarginalSharpening",
    "MetropolisHastings",
    "MultipleTry",
    "ParallelTempering",
    "ParticleMH",
    "Plain",
    "PowerSMC",
    "make_sampler",
]

#: method name → sampler class
METHODS: dict[str, Any] = {
    cls.method: cls
    for cls in (
        Plain,
        LowTemperature,
        BestOfN,
        MetropolisHastings,
        EntropyCut,
        MultipleTry,
        EntropyGuided,
        ParallelTempering,
        PowerSMC,
        ParticleMH,
        ConditionalSMC,
        Lookahead,
        AuxiliaryParticles,
        MarginalSharpening,
    )
}


def make_sampler(
    method: str,
    *,
    alpha: float = 4.0,
    max_new_tokens: int = 512,
    stop: str | Iterable[str] | None = None,
    potential: Any = None,
    **settings: Any,
) -> Sampler:
    """A sampler by name.

    Where the method works in blocks and none is given, the block is a sixteenth of the horizon, as in the papers
    (192 of 3072).

    Args:
        method: A name in ``SAMPLERS``.
        alpha: Exponent.
        max_new_tokens: Horizon.
        stop: Strings that end an answer; see ``PowerTarget``.
        potential: Of answers; see ``PowerTarget``.
        **settings: The method's own; None keeps the default.

    Raises:
        ValueError: A method, or a setting of it, that there is not (nearest names suggested), or a wrong value.

    Examples:
        >>> sampler = make_sampler("mh", alpha=4, max_new_tokens=512, moves=6)
        >>> sampler.target.alpha, sampler.block, sampler.moves
        (4, 32, 6)
        >>> make_sampler("mh", movs=6)
        Traceback (most recent call last):
        ...
        ValueError: method 'mh' has no setting 'movs' (did you mean 'moves'?); it has: ...
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}{_nearest(method, METHODS)}; known: {', '.join(METHODS)}")
    cls = METHODS[method]
    fields = {field.name for field in dataclasses.fields(cls) if field.init} - {"target"}
    settings = {name: value for name, value in settings.items() if value is not None}
    for name in settings:
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none beside alpha and max_new_tokens"
            raise ValueError(f"method {method!r} has no setting {name!r}{_nearest(name, fields)}; it has: {known}")
    if issubclass(cls, Staged | ParallelTempering | Lookahead):
        settings.setdefault("block", max(1, max_new_tokens // 16))
    sampler: Sampler = cls(target=PowerTarget(alpha, max_new_tokens, (), stop_strings(stop), potential), **settings)
    return sampler


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
