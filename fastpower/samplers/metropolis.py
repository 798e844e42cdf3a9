"""Metropolis–Hastings on whole answers (Karan & Du, *Reasoning with Sampling*, arXiv 2510.14901), exact for answers of
variable length.

A move cuts the current answer x at m ~ λ(· | x), redraws the suffix from q ∝ p^α token by token and accepts y with

    log U < Σ_{t≥m} logz_t(y) − Σ_{t≥m} logz_t(x) + log λ(m | y) − log λ(m | x),    logz_t = log Σ_v p(v | x_<t)^α,

each sum over that answer's own full suffix. Horizons T_k = kB only warm the chain up; the last stage always makes its
N moves at the full horizon.

Three things save work without changing a single token of a chain, because every random number is keyed by what it is
for: *skip* – decoding starts at the first difference between proposal and current answer; *early_rejection* – U is
drawn first and a proposal is dropped once it cannot win; *prefetch* – the next moves are decoded as if those before
them were rejected, and redone after an acceptance (Brockwell 2006).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastpower.chain import Chain, Run
from fastpower.cuts import CutLaw, UniformCut
from fastpower.outcome import Outcome
from fastpower.proposal import Redraw, redraw
from fastpower.random import Purpose
from fastpower.record import Record
from fastpower.requests import Rollout, Ticket, Watch
from fastpower.target import PowerTarget

Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class MetropolisHastings:
    """Exact Metropolis–Hastings for p^α.

    target: what is sampled. block: tokens B by which the horizon grows from stage to stage. moves: N per stage.
    cut: the cut law. maximise: accept y iff log p(y) > log p(x) instead (the α → ∞ variant, "max swap"; its outcome is
    marked inexact). skip, early_rejection, prefetch (moves decoded ahead): lossless acceleration.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    block: int = 192
    moves: int = 10
    cut: CutLaw = field(default_factory=UniformCut)
    maximise: bool = False
    skip: bool = True
    early_rejection: bool = True
    prefetch: int = 1
    method: ClassVar[str] = "mh"

    def __post_init__(self) -> None:
        self.target.stages(self.block)
        if self.moves < 1:
            raise ValueError(f"moves must be at least 1 per stage, got {self.moves}")
        if self.prefetch < 1:
            raise ValueError(f"prefetch must be at least 1 (1 = one move at a time), got {self.prefetch}")

    @property
    def planned_moves(self) -> int:
        """The most moves a run makes; answers that end early make fewer."""
        return self.moves * len(self.target.stages(self.block))

    def run(self, chain: Chain) -> Run:
        x, trace = Record.empty(chain.prompt), Trace()
        for stage, horizon in enumerate(self.target.stages(self.block)):
            if not x.ended and len(x) < horizon:
                x = yield from extend(chain, x, horizon, self.target.alpha, stage)
            if x.ended and horizon != self.target.horizon:
                continue  # an answer that has ended goes straight to the last stage
            start = x  # after the last round: the first whole answer, before any move at the full horizon
            x = yield from self._stage(chain, x, horizon, stage, trace)
        outcome = self._outcome(x, trace)
        outcome.diagnostics["initial_logp"] = start.total_logp
        return outcome

    def _stage(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Generator[Any, Any, Record]:
        """N moves at one horizon."""
        ahead: deque[Move] = deque()
        for i in range(self.moves):
            chain.partial = lambda x=x: self._outcome(x, trace, complete=False)
            while len(ahead) < min(self.prefetch, self.moves - i):
                ahead.append(self._propose(chain, x, horizon, stage, i + len(ahead)))
            move = ahead.popleft()
            y, log_ratio = yield from self._proposed(x, move, horizon)
            accepted = y is not None and (move.log_u < log_ratio)
            chain.moved(accepted)
            event: dict[str, Any] = {"stage": stage, "horizon": horizon, "cut": move.cut, "accepted": accepted}
            if accepted and y is not x:
                assert y is not None
                x = y
                for later in ahead:  # decoded for a state that is no more
                    later.cancel()
                ahead.clear()
            trace.append(event | {"length": len(x), "logp": x.total_logp})
        return x

    def _propose(self, chain: Chain, x: Record, horizon: int, stage: int, i: int) -> Move:
        """Start move i from x: cut, acceptance uniform and first difference are known at once."""
        key = chain.key("move", stage, i)
        log_u = math.log(chain.uniform(Purpose.ACCEPT, "move", stage, i))
        cut = self.cut.draw(x.entropy, horizon, chain.uniform(Purpose.CUT, "move", stage, i))
        if cut is None:
            return Move(None, log_u, None, None)
        exponents = (self.target.alpha,)
        plan = redraw(chain, x, cut, horizon, key, self.target.alpha, exponents, skip=self.skip)
        if plan.rollout is None:
            chain.counts.free_moves += 1
            return Move(cut, log_u, plan, None)
        if self.early_rejection and plan.difference is not None:
            plan.rollout.watch = self._watch(x, cut, plan.difference, horizon, log_u)
        return Move(cut, log_u, plan, chain.start(plan.rollout))

    def _proposed(self, x: Record, move: Move, horizon: int) -> Generator[Any, Any, tuple[Record | None, float]]:
        """The proposal y and its log acceptance ratio; y is None where it was given up."""
        if move.ticket is None:
            return x, 0.0
        suffix = yield move.ticket
        if move.plan is None or move.plan.difference is None:
            return x, 0.0
        if suffix.gave_up:
            move.ticket.chain.counts.early_rejections += 1
            return None, -math.inf
        y = x.spliced(move.plan.difference, suffix)
        if self.maximise:
            return y, math.inf if y.total_logp > x.total_logp else -math.inf
        return y, log_acceptance(x, y, move.plan, self.cut, horizon)

    def _watch(self, x: Record, cut: int, difference: int, horizon: int, log_u: float) -> Watch | None:
        """Early rejection. For α ≥ 1 every logz is ≤ 0, so the running sum bounds the final one from above."""
        if self.maximise:
            return FallingSum(float(x.logp[difference:].sum()), lambda logp, logz: logp)
        if self.target.alpha < 1.0:
            return None
        limit = log_u + float(x.logz[difference + 1 :, 0].sum()) + self.cut.log_probability(x.entropy, cut, horizon)
        bound = self.cut.bound(x.entropy[:difference], cut, horizon)
        return FallingSum(limit, lambda logp, logz: logz[0], bound, first=0.0)

    def _outcome(self, x: Record, trace: Trace, *, complete: bool = True) -> Outcome:
        return Outcome(x, list(trace), exact=not self.maximise, complete=complete)


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way. A move without a plan stays where it is."""

    cut: int | None
    log_u: float
    plan: Redraw | None
    ticket: Ticket | None

    def cancel(self) -> None:
        if self.ticket is not None:
            self.ticket.cancel()


class FallingSum:
    """A watch: gives up when a sum of terms ≤ 0, plus an upper bound that only falls, drops below ``limit``."""

    def __init__(self, limit: float, term: Any, bound: Any = None, *, first: float | None = None) -> None:
        self.limit = limit - 1e-6 * (1.0 + abs(limit))  # sums differ in rounding: never drop what might be accepted
        self.term = term
        self.bound = bound
        self.first = first  # the term of the first position, where it is known to cancel
        self.total = 0.0

    def __call__(self, token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
        self.total += self.term(logp, logz) if self.first is None else self.first
        self.first = None
        slack = 0.0 if self.bound is None else self.bound(entropy)
        return self.total + slack < self.limit


def log_acceptance(x: Record, y: Record, plan: Redraw, cut_law: CutLaw, horizon: int) -> float:
    """log of π(y) λ(m|y) q(x|y) / (π(x) λ(m|x) q(y|x)). Up to the first difference every term cancels exactly."""
    assert plan.difference is not None
    tail = plan.difference + 1
    log_ratio = float(y.logz[tail:, 0].sum()) - float(x.logz[tail:, 0].sum())
    forward = cut_law.log_probability(x.entropy, plan.cut, horizon)
    return log_ratio + cut_law.log_probability(y.entropy, plan.cut, horizon) - forward


def extend(
    chain: Chain, x: Record, horizon: int, alpha: float, stage: int, exponents: tuple[float, ...] | None = None
) -> Generator[Any, Any, Record]:
    """Grow an unfinished answer to ``horizon`` with q ∝ p^alpha."""
    position = chain.prompt_length + len(x)
    key = chain.key("extend", stage)
    suffix = yield Rollout(x.branch, position, horizon - len(x), key, alpha, exponents or (alpha,))
    return x.spliced(len(x), suffix)
