"""Early rejection: U is drawn first, and a move is dropped once nothing that follows could get it accepted.

Lossless: what is dropped would have been rejected. Bounds only fall while a proposal grows, because log p ≤ 0 and,
for α ≥ 1, logz ≤ 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastpower.chains.record import Array
from fastpower.chains.requests import Watch
from fastpower.samplers.cuts import Bound


class FallingSum:
    """A watch: gives up when a sum of terms ≤ 0, plus an upper bound that only falls, drops below ``limit``.

    Attributes:
        limit: What the sum must reach, nats.
        term: log p and logz of a position → its term.
        bound: Entropy of a position → an upper bound of what comes beside the sum.
        cancels: The first position's term is the same on both sides and does not count.
    """

    def __init__(
        self,
        limit: float,
        term: Callable[[float, Sequence[float]], float],
        bound: Bound | None = None,
        *,
        cancels: bool = False,
    ) -> None:
        self.limit = limit - 1e-6 * (1.0 + abs(limit))  # sums differ in rounding: never drop what might be accepted
        self.term = term
        self.bound = bound
        self.cancels = cancels
        self.total = 0.0

    def __call__(self, token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
        if self.cancels:  # margin(…) < 0, in place: this is asked for every token drawn
            self.cancels = False
        else:
            self.total += self.term(logp, logz)
        bound = self.bound
        return (self.total if bound is None else self.total + bound(entropy)) < self.limit

    def margin(self, logp: float, logz: Sequence[float], entropy: float) -> float:
        """What is left above ``limit``, the position just drawn included; an upper bound of what will be left."""
        if not self.cancels:
            self.total += self.term(logp, logz)
        self.cancels = False
        slack = 0.0 if self.bound is None else self.bound(entropy)
        return self.total + slack - self.limit

    def fall(self, amount: float, entropy: Array) -> float:
        """``margin`` after positions that were evaluated together: their terms' sum and entropies (n,), n ≥ 1."""
        self.total += amount
        slack = 0.0
        if self.bound is not None:
            for h in entropy.tolist():
                slack = self.bound(h)
        return self.total + slack - self.limit


class Race:
    """Early rejection of K tries together: hopeless once log Σ_j w_j must stay below log U, whichever is chosen.

    Attributes:
        log_u: log U.
        sums: Of each try, the sum that bounds its log w_j; None where nothing is known.
        margins: (K,) upper bounds of log w_j. They only fall.
    """

    def __init__(self, log_u: float, sums: Sequence[FallingSum | None]) -> None:
        self.log_u = log_u
        self.sums = sums
        self.margins = np.full(len(sums), math.inf)

    @property
    def hopeless(self) -> bool:
        """Whether the move will be rejected whatever follows."""
        return bool(np.logaddexp.reduce(self.margins) < self.log_u)

    def watch(self, j: int) -> Watch | None:
        """The watch of try j while it is decoded."""
        total = self.sums[j]
        if total is None:
            return None

        def watch(token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
            self.margins[j] = total.margin(logp, logz, entropy)
            return bool(self.margins[j] < self.log_u) and self.hopeless

        return watch
