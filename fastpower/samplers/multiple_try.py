"""Multiple-try Metropolis (Liu, Liang, Wong 2000) on whole answers.

K suffixes are drawn independently from q at one cut, with weights relative to the current answer

    log w_j = Σ_{t≥m} logz_t(y_j) − Σ_{t≥m} logz_t(x) + log λ(m | y_j) − log λ(m | x);

J ~ softmax(log w) is proposed and accepted if log U < logsumexp(log w) − logsumexp({0} ∪ {log w_i : i ≠ J}). The
proposal does not depend on the current suffix, so the tries not chosen serve as the reference set. K = 1 is
Metropolis–Hastings. K may depend on what precedes the cut, because x and y share it.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastpower.chain import Chain
from fastpower.random import Purpose
from fastpower.record import Record
from fastpower.samplers.move import MoveKernel, book
from fastpower.samplers.staged import Refine, Staged, Trace, event


@dataclass(frozen=True)
class MultipleTry(Staged):
    """Exact multiple-try Metropolis for p^α. tries: K suffixes per move, decoded together."""

    tries: int = 4
    method: ClassVar[str] = "mtm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1 per move, got {self.tries}")

    def tries_at(self, x: Record, cut: int) -> int:
        """K for a cut; may depend on what precedes position ``cut`` (its entropy included), on nothing after it."""
        return self.tries

    def refine(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Refine:
        alpha = self.target.alpha
        kernel = MoveKernel(alpha, horizon, self.cut, (alpha,), skip=self.skip)
        for i in range(self.moves):
            chain.partial = lambda x=x: self.outcome(chain, x, trace, complete=False)
            cut = self.cut.draw(x.entropy, horizon, chain.uniform(Purpose.CUT, "move", stage, i))
            accepted = False
            if cut is not None:
                y, log_ratio = yield from multiple_try(chain, kernel, x, cut, self.tries_at(x, cut), stage, i)
                accepted = math.log(chain.uniform(Purpose.ACCEPT, "move", stage, i)) < log_ratio
                x = y if accepted else x
            chain.moved(accepted)
            trace.append(event(stage, horizon, cut, accepted, x))
        return x


def multiple_try(
    chain: Chain, kernel: MoveKernel, x: Record, cut: int, tries: int, stage: int, i: int
) -> Generator[Any, Any, tuple[Record, float]]:
    """The chosen try and its log acceptance ratio."""
    # Try 0 has the keys of a Metropolis–Hastings move: with K = 1 the two samplers make the same chain.
    labels = [("move", stage, i) if j == 0 else ("move", stage, i, j) for j in range(tries)]
    plans = [kernel.redraw(chain, x, cut, *label) for label in labels]
    for plan in plans:
        book(chain, plan)
    tickets = [chain.start(plan.rollout) for plan in plans if plan.rollout is not None]
    suffixes = iter((yield tickets) if tickets else [])
    candidates = [kernel.proposal(x, plan, next(suffixes) if plan.rollout else None) for plan in plans]
    log_w = np.array([kernel.log_acceptance(x, y, plan) for y, plan in zip(candidates, plans, strict=True)])
    total = float(np.logaddexp.reduce(log_w))
    if total == -math.inf:
        return x, 0.0  # no try can be reached back from: stay
    u = chain.uniform(Purpose.SELECT, "move", stage, i)
    chosen = min(int(np.searchsorted(np.cumsum(np.exp(log_w - total)), u, side="right")), tries - 1)
    reference = float(np.logaddexp.reduce(np.append(np.delete(log_w, chosen), 0.0)))
    return candidates[chosen], total - reference
