"""The potential's term of every sampler, in one place: p^α becomes p^α φ.

``weighed`` asks log φ of answers once; they carry it from then on. ``tilted`` is what a move's log weights become:
``log φ(y) − log φ(x)`` is added. An answer with φ = 0 is no state of the target: a chain that stands on one goes on by
p^α alone, and goes to the first answer with φ > 0 that it meets; from there none leads back.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastpower.chains.chain import Chain
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Weigh
from fastpower.potential import Potential


def weighed(
    chain: Chain, potential: Potential, records: Sequence[Record | None]
) -> Generator[Any, Any, list[Record | None]]:
    """The records with log φ; those that know theirs as they are. Equal answers are asked about once, all together."""
    asked: dict[tuple[int, ...], Record] = {}
    for record in records:
        if record is not None and record.log_potential is None:
            asked.setdefault(tuple(record.tokens), record)
    values = (yield [_ask(chain, potential, record) for record in asked.values()]) if asked else []
    known = dict(zip(asked, values, strict=True))
    return [
        record
        if record is None or record.log_potential is not None
        else replace(record, log_potential=known[tuple(record.tokens)])
        for record in records
    ]


def weighed_one(chain: Chain, potential: Potential | None, record: Record) -> Generator[Any, Any, Record]:
    """One record with log φ; as it is where there is no potential."""
    if potential is None:
        return record
    [found] = yield from weighed(chain, potential, [record])
    assert found is not None
    return found


def log_twists(chain: Chain, potential: Potential, records: Sequence[Record]) -> Generator[Any, Any, Array]:
    """(N,) log ψ of a population's answers: log φ where they have ended."""
    asked = {tuple(record.tokens): record for record in records}
    values = yield [_ask(chain, potential, record, twist=not record.ended) for record in asked.values()]
    known = dict(zip(asked, values, strict=True))
    return np.array([known[tuple(record.tokens)] for record in records])


def _ask(chain: Chain, potential: Potential, record: Record, *, twist: bool = False) -> Any:
    return chain.start(Weigh(list(record.tokens), record.ended, potential, twist))


def in_support(x: Record) -> bool:
    """Whether a weighed answer has φ > 0; True without a potential."""
    return x.log_potential is None or x.log_potential > -math.inf


def tilted(x: Record, candidates: Sequence[Record | None], log_w: Array) -> Array:
    """(K,) log weights of a move's candidates relative to x, the potential included.

    Args:
        x: The current answer; weighed, as the candidates are, or none of them is.
        candidates: What may be moved to; None has no weight.
        log_w: (K,) their log weights for p^α.

    Returns:
        The log weights for p^α φ; +inf for answers with φ > 0 where x has φ = 0, in proportion to nothing but φ and
        ``log_w``: see ``entered``.
    """
    if x.log_potential is None:
        return log_w
    terms = np.array([_term(y, x) for y in candidates])
    if in_support(x):
        return log_w + (terms - x.log_potential)
    return log_w + terms if (terms > -math.inf).any() else log_w


def _term(y: Record | None, x: Record) -> float:
    if y is None:
        return -math.inf
    value = x.log_potential if y is x else y.log_potential
    assert value is not None
    return value


def entered(x: Record, y: Record | None) -> bool:
    """Whether a move to y leaves the answers with φ = 0, so that it is accepted whatever its ratio."""
    return y is not None and x.log_potential == -math.inf and in_support(y)


def hopeless(log_w: float, potential: Potential, x: Record, log_u: float) -> bool:
    """Whether a move of this log weight for p^α is rejected whatever φ is, so that φ need not be asked (lossless)."""
    left = room(potential, x)
    return left < math.inf and log_w + left < log_u - 1e-6 * (1.0 + abs(log_u))


def room(potential: Potential | None, x: Record) -> float:
    """An upper bound of what the potential adds to any log weight relative to x: early rejection may rely on it."""
    if potential is None:
        return 0.0
    if x.log_potential is None or x.log_potential == -math.inf:
        return math.inf
    return potential.upper - x.log_potential
