"""Multiple-try Metropolis (Liu, Liang, Wong 2000) on whole answers.

K suffixes are drawn independently from q at one cut, with weights relative to the current answer

    log w_j = Σ_{t≥m} logz_t(y_j) − Σ_{t≥m} logz_t(x) + log λ(m | y_j) − log λ(m | x);

J ~ softmax(log w) is proposed and accepted if log U < logsumexp(log w) − logsumexp({0} ∪ {log w_i : i ≠ J}). The
proposal does not depend on the current suffix, so the tries not chosen serve as the reference set. K = 1 is
Metropolis–Hastings. K may depend on what precedes the cut, because x and y share it.

*early_rejection*: U is drawn first; no try can be accepted once log Σ_j w_j must stay below log U, whichever is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain
from fastpower.chains.outcome import Trace
from fastpower.chains.record import Record
from fastpower.chains.requests import Watch
from fastpower.random import Purpose, select
from fastpower.samplers.move import FallingSum, MoveKernel, book
from fastpower.samplers.staged import Refine, Staged, event


@dataclass(frozen=True)
class MultipleTry(Staged):
    """Exact multiple-try Metropolis for p^α.

    Attributes:
        tries: K suffixes per move, decoded together.
        early_rejection: Drop a move that cannot be accepted any more (lossless).
    """

    tries: int = 4
    early_rejection: bool = True
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
        kernel = MoveKernel(alpha, horizon, self.cut, (alpha,), 0, self.skip, self.early_rejection)
        for i in range(self.moves):
            chain.partial = lambda x=x: self.outcome(chain, x, trace, complete=False)
            cut = self.cut.draw(x.entropy, horizon, chain.uniform(Purpose.CUT, "move", stage, i))
            accepted = False
            if cut is not None:
                log_u = math.log(chain.uniform(Purpose.ACCEPT, "move", stage, i))
                y, log_ratio = yield from multiple_try(chain, kernel, x, cut, self.tries_at(x, cut), log_u, stage, i)
                accepted = log_u < log_ratio
                x = y if accepted else x
            chain.moved(accepted)
            trace.append(event(stage, horizon, cut, accepted, x))
        return x


def multiple_try(
    chain: Chain, kernel: MoveKernel, x: Record, cut: int, tries: int, log_u: float, stage: int, i: int
) -> Generator[Any, Any, tuple[Record, float]]:
    """The chosen try and its log acceptance ratio, −inf if all were given up because log U is out of reach."""
    # Try 0 has the keys of a Metropolis–Hastings move: with K = 1 the two samplers make the same chain.
    labels = [("move", stage, i) if j == 0 else ("move", stage, i, j) for j in range(tries)]
    plans = [kernel.redraw(chain, x, cut, *label) for label in labels]
    race = Race(log_u, tries)
    for j, plan in enumerate(plans):
        book(chain, plan)
        if plan.difference is None:
            race.margins[j] = 0.0  # this try is x itself
        elif plan.rollout is not None and kernel.early_rejection:
            plan.rollout.watch = race.watch(j, kernel.watch(x, cut, plan.difference))
    tickets = [chain.start(plan.rollout) for plan in plans if plan.rollout is not None]
    results = (yield tickets) if tickets else []
    if any(suffix.gave_up for suffix in results):
        chain.counts.early_rejections += 1
        for plan, suffix in zip((plan for plan in plans if plan.rollout is not None), results, strict=True):
            if suffix.gave_up and plan.difference is not None:
                chain.counts.early_rejection_tokens += kernel.horizon - plan.difference - len(suffix.tokens)
        return x, -math.inf
    suffixes = iter(results)
    candidates = [kernel.proposal(x, plan, next(suffixes) if plan.rollout else None) for plan in plans]
    log_w = np.array([kernel.log_acceptance(x, y, plan) for y, plan in zip(candidates, plans, strict=True)])
    total = float(np.logaddexp.reduce(log_w))
    if total == -math.inf:
        return x, -math.inf  # no try can be reached back from: stay
    chosen = select(np.exp(log_w - total), chain.uniform(Purpose.SELECT, "move", stage, i))
    reference = float(np.logaddexp.reduce(np.append(np.delete(log_w, chosen), 0.0)))
    return candidates[chosen], total - reference


class Race:
    """Early rejection of K tries together. ``margins`` are upper bounds of log w_j; they only fall."""

    def __init__(self, log_u: float, tries: int) -> None:
        self.log_u = log_u
        self.margins = np.full(tries, math.inf)

    def watch(self, j: int, total: FallingSum | None) -> Watch | None:
        """The watch of try j."""
        if total is None:
            return None

        def hopeless(token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
            self.margins[j] = total.margin(logp, logz, entropy)
            if self.margins[j] >= self.log_u:
                return False
            return bool(np.logaddexp.reduce(self.margins) < self.log_u)

        return hopeless
