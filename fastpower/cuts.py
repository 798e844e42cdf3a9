"""Cut laws λ(m | x): where a Markov-chain move cuts the current answer.

A move from x cuts at m ~ λ(· | x), keeps x_<m and draws a new suffix. If λ depends on x the acceptance ratio carries
λ(m | y) / λ(m | x); dropping it is one of the published mistakes. A law that can never cut some position may be
reducible, so every entropy-driven law mixes in ``epsilon`` of the uniform one.

To add a law, subclass ``CutLaw`` and write ``probabilities``; ``bound`` is optional and only saves work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bound = Callable[[float], float]


class CutLaw:
    """A law of cut positions given an answer's entropies."""

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        """(n,) λ(m | x) for an answer with entropies (n,) nats, n ≥ 1. A sum below 1 leaves the rest to no move."""
        raise TypeError(f"{type(self).__name__} must define probabilities(entropy, horizon)")

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        """Early rejection: called with the entropy of each further position of a growing answer that starts with
        ``entropy``, returns an upper bound of log λ(cut | finished answer)."""
        return lambda _: 0.0

    def log_probability(self, entropy: Array, cut: int, horizon: int) -> float:
        """log λ(cut | x); −inf where the law cannot cut."""
        value = float(self.probabilities(entropy, horizon)[cut])
        return math.log(value) if value > 0.0 else -math.inf

    def draw(self, entropy: Array, horizon: int, u: float) -> int | None:
        """The cut that the uniform ``u`` selects; None is a move that stays."""
        cumulative = np.cumsum(self.probabilities(entropy, horizon))
        cut = int(np.searchsorted(cumulative, u, side="right"))
        if cut < len(entropy):
            return cut
        # A proper law loses an ulp in its sum: then the last position is meant.
        return len(entropy) - 1 if cumulative[-1] > 1.0 - 1e-9 else None


@dataclass(frozen=True)
class UniformCut(CutLaw):
    """λ(m | x) = 1 / len(x) (Karan & Du, with the length ratio that answers of variable length need)."""

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return np.full(len(entropy), 1.0 / len(entropy))

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        n = len(entropy)

        def step(_: float) -> float:
            nonlocal n
            n += 1
            return -math.log(n)

        return step


@dataclass(frozen=True)
class FixedHorizonCut(CutLaw):
    """λ(m | x) = 1 / horizon: cuts past the end stay where they are, and no ratio is needed."""

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return np.full(len(entropy), 1.0 / horizon)

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        value = -math.log(horizon)
        return lambda _: value
