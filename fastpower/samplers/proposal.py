"""Redrawing the suffix of an answer from q ∝ p^α, doing only the work that can make a difference.

The redrawn suffix agrees with the current one up to a first difference D. Position by position the proposal keeps x_t
with probability q(x_t | x_<t), decided by a keyed uniform against the stored log q; at the first position not kept,
y_D is drawn from q without x_D, and from there on freely. The law of y is exactly q, and everything before D is known
from stored numbers: no forward at all for the part that agrees (Bortz, Kalos, Lebowitz 1975 in another guise).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastpower.chains.chain import Chain
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Rollout, Watch
from fastpower.random import Purpose, uniforms


@dataclass(frozen=True, slots=True)
class Redraw:
    """A suffix to be redrawn from position ``cut``: it first differs at ``difference`` (None: it is x again)."""

    cut: int
    difference: int | None
    rollout: Rollout | None  #: None when nothing has to be decoded
    skipped: int = 0  #: positions that agree and are not forwarded


def log_q(x: Record, alpha: float, column: int = 0) -> Array:
    """(n,) log q(x_t | x_<t) = α log p(x_t) − logz_t."""
    result: Array = alpha * x.logp - x.logz[:, column]
    return result


def first_difference(logq: Array, cut: int, key: int, position: int) -> int | None:
    """The first index ≥ cut whose token is not kept. ``position`` is the absolute position of index ``cut``."""
    u = uniforms(key, position, len(logq) - cut, Purpose.KEEP)
    changed = np.flatnonzero(np.log(u) >= logq[cut:])
    return cut + int(changed[0]) if len(changed) else None


def redraw(
    chain: Chain,
    x: Record,
    cut: int,
    horizon: int,
    key: int,
    alpha: float,
    exponents: tuple[float, ...],
    *,
    column: int = 0,
    skip: bool = True,
    watch: Watch | None = None,
) -> Redraw:
    """Prepare the redraw of x from ``cut`` up to ``horizon``, with the stream ``key``.

    Args:
        chain: What runs.
        x: The answer now.
        cut: First position drawn again.
        horizon: Most tokens of the answer.
        key: Of the stream.
        alpha: Exponent of the proposal.
        exponents: Those of the statistics.
        column: Of alpha among them.
        skip: False makes the same coupled draw with a forward at every position: same tokens, all the work.
        watch: Sees the positions from the first difference on.
    """
    start = chain.prompt_length
    difference = first_difference(log_q(x, alpha, column), cut, key, start + cut)
    if difference is None:
        if skip:
            return Redraw(cut, None, None, len(x) - cut)
        again = Rollout(x.branch, start + cut, len(x) - cut, key, alpha, exponents, forced=x.tokens[cut:])
        return Redraw(cut, None, again)
    begin = difference if skip else cut
    rollout = Rollout(
        x.branch,
        start + begin,
        horizon - begin,
        key,
        alpha,
        exponents,
        forced=x.tokens[begin:difference],
        exclude=x.tokens[difference],
        watch=watch,
    )
    return Redraw(cut, difference, rollout, begin - cut)
