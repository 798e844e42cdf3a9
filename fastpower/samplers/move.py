"""One Metropolis–Hastings move as data: cut, uniform, first difference, and the request that is under way.

A move from x cuts at m ~ λ(· | x), redraws the suffix from q ∝ p^α token by token and accepts y with

    log U < Σ_{t≥m} logz_t(y) − Σ_{t≥m} logz_t(x) + log λ(m | y) − log λ(m | x),    logz_t = log Σ_v p(v | x_<t)^α,

each sum over that answer's own full suffix. Up to the first difference all terms are equal and cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from fastpower.chains.chain import Chain, Ticket
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Suffix
from fastpower.random import Purpose
from fastpower.samplers.cuts import Bound, CutLaw
from fastpower.samplers.proposal import Redraw, redraw

Proposed = Generator[Any, Any, tuple[Record | None, float]]


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way. Without a plan it stays where it is; without a ticket nothing has to be decoded."""

    cut: int | None
    log_u: float
    plan: Redraw | None
    ticket: Ticket | None

    def cancel(self) -> None:
        """Drop what was decoded for it."""
        if self.ticket is not None:
            counts = self.ticket.chain.counts
            counts.prefetch_dropped_tokens += self.ticket.decoded
            counts.decoded_tokens -= self.ticket.decoded
            self.ticket.cancel()


@dataclass(frozen=True, slots=True)
class MoveKernel:
    """The move at one horizon and exponent.

    Attributes:
        exponents: Those recorded with every token.
        column: Alpha among them.
    """

    alpha: float
    horizon: int
    cut: CutLaw
    exponents: tuple[float, ...]
    column: int = 0
    skip: bool = True
    early_rejection: bool = True
    maximise: bool = False

    def start(self, chain: Chain, x: Record, *labels: int | str) -> Move:
        """Begin a move whose randomness is keyed by ``labels``. U and the first difference are known at once."""
        log_u = math.log(chain.uniform(Purpose.ACCEPT, *labels))
        entropy = self.cuttable(x)
        cut = self.cut.draw(entropy, self.horizon, chain.uniform(Purpose.CUT, *labels)) if len(entropy) else None
        if cut is None:
            return Move(None, log_u, None, None)
        plan = self.redraw(chain, x, cut, *labels)
        if plan.rollout is None:
            return Move(cut, log_u, plan, None)
        if self.early_rejection and plan.difference is not None:
            plan.rollout.watch = self.watch(x, cut, plan.difference, log_u)
        return Move(cut, log_u, plan, chain.start(plan.rollout))

    def cuttable(self, x: Record) -> Array:
        """Entropies of the positions where a move may cut."""
        return x.entropy

    def redraw(self, chain: Chain, x: Record, cut: int, *labels: int | str) -> Redraw:
        """The redraw of x from ``cut``, not yet started."""
        key = chain.key(*labels)
        return redraw(chain, x, cut, self.horizon, key, self.alpha, self.exponents, column=self.column, skip=self.skip)

    def finish(self, chain: Chain, x: Record, move: Move) -> Proposed:
        """The proposal y and its log acceptance ratio; y is None where it was given up, x where nothing differs."""
        if move.plan is not None:
            book(chain, move.plan)
        if move.ticket is None:
            return x, 0.0
        suffix = yield move.ticket
        if move.plan is None or move.plan.difference is None:
            return x, 0.0
        if suffix.gave_up:
            chain.counts.early_rejections += 1
            chain.counts.early_rejection_tokens += self.horizon - move.plan.difference - len(suffix.tokens)
            return None, -math.inf
        y = self.proposal(x, move.plan, suffix)
        if self.maximise:
            return y, math.inf if y.total_logp > x.total_logp else -math.inf
        return y, self.log_acceptance(x, y, move.plan)

    def proposal(self, x: Record, plan: Redraw, suffix: Suffix | None) -> Record:
        """The proposed answer."""
        if plan.difference is None or suffix is None:
            return x
        return x.spliced(plan.difference, suffix)

    def log_acceptance(self, x: Record, y: Record, plan: Redraw) -> float:
        """log of π(y) λ(m|y) q(x|y) / (π(x) λ(m|x) q(y|x)); 0 for y = x."""
        if plan.difference is None:
            return 0.0
        tail = plan.difference + 1
        log_ratio = float(y.logz[tail:, self.column].sum()) - float(x.logz[tail:, self.column].sum())
        backward = self.cut.log_probability(y.entropy, plan.cut, self.horizon)
        return log_ratio + backward - self.cut.log_probability(x.entropy, plan.cut, self.horizon)

    def watch(self, x: Record, cut: int, difference: int, log_u: float = 0.0) -> FallingSum | None:
        """Early rejection. For α ≥ 1 every logz is ≤ 0, so the running sum bounds the final one from above."""
        if self.maximise:
            return FallingSum(float(x.logp[difference:].sum()), lambda logp, logz: logp)
        if self.alpha < 1.0:
            return None
        limit = log_u + float(x.logz[difference + 1 :, self.column].sum())
        limit += self.cut.log_probability(x.entropy, cut, self.horizon)
        bound = self.cut.bound(x.entropy[:difference], cut, self.horizon)
        column = self.column
        return FallingSum(limit, lambda logp, logz: logz[column], bound, cancels=True)


def book(chain: Chain, plan: Redraw) -> None:
    """Count what a redraw that is used (not one decoded ahead and dropped) saved."""
    chain.counts.skipped_tokens += plan.skipped
    chain.counts.free_moves += plan.rollout is None


class FallingSum:
    """A watch: gives up when a sum of terms ≤ 0, plus an upper bound that only falls, drops below ``limit``.

    Attributes:
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
