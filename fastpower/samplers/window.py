"""A Metropolis–Hastings move that redraws a window and keeps the tail.

From x cut at m ~ λ(· | x), redraw the w tokens from m with q ∝ p^α, keep what follows and score it in one forward:

    log U < Σ_win logz(y) − Σ_win logz(x) + α [log p(tail | y) − log p(tail | x)] + log λ(m | y) − log λ(m | x),

because α log p − log q = logz within the window, and nothing is drawn after it. Only windows that leave a tail are
drawn: λ is the cut law of the answer without its last w positions. A window that draws an end of sequence is rejected:
no window could lead back. The answer's length never changes, so the move is only a part of a sampler:
``MetropolisHastings`` mixes it with redrawn suffixes, the choice not depending on the state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastpower.chains.chain import Chain
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Score
from fastpower.samplers.cuts import Bound
from fastpower.samplers.move import FallingSum, Move, MoveKernel, Proposed, book
from fastpower.samplers.proposal import Redraw, redraw


@dataclass(frozen=True, slots=True)
class WindowKernel(MoveKernel):
    """window: tokens redrawn, w."""

    window: int = 32

    def cuttable(self, x: Record) -> Array:
        return x.entropy[: max(len(x) - self.window, 0)]

    def redraw(self, chain: Chain, x: Record, cut: int, *labels: int | str) -> Redraw:
        end, key = cut + self.window, chain.key(*labels)
        head = x.first(end)
        return redraw(chain, head, cut, end, key, self.alpha, self.exponents, column=self.column, skip=self.skip)

    def finish(self, chain: Chain, x: Record, move: Move) -> Proposed:
        plan = move.plan
        if plan is not None:
            book(chain, plan)
        if plan is None or move.ticket is None:
            return x, 0.0
        suffix = yield move.ticket
        if plan.difference is None:
            return x, 0.0
        end = plan.cut + self.window
        if suffix.gave_up:
            chain.counts.early_rejections += 1
            chain.counts.early_rejection_tokens += end - plan.difference - len(suffix.tokens)
            return None, -math.inf
        if suffix.ended:
            return None, -math.inf
        head = x.spliced(plan.difference, suffix)
        ended = chain.ending(head.tokens + x.tokens[end:], end, self.horizon, x.ended)
        if ended is None:  # behind another window the tail is no answer's: a stop string is whole earlier, or no more
            return None, -math.inf
        y = head.followed_by(x.tokens[end:], (yield self.rescore(chain, x, head)), ended)
        if self.maximise:
            return y, math.inf if y.total_logp > x.total_logp else -math.inf
        return y, self.log_acceptance(x, y, plan)

    def rescore(self, chain: Chain, x: Record, head: Record) -> Score:
        """The request that scores x's tail after ``head``."""
        return Score(head.branch, chain.prompt_length + len(head), x.tokens[len(head) :], self.exponents)

    def log_acceptance(self, x: Record, y: Record, plan: Redraw) -> float:
        if plan.difference is None:
            return 0.0
        end = plan.cut + self.window
        inside = slice(plan.difference + 1, end)
        log_ratio = float(y.logz[inside, self.column].sum()) - float(x.logz[inside, self.column].sum())
        log_ratio += self.alpha * (float(y.logp[end:].sum()) - float(x.logp[end:].sum()))
        backward = self.cut.log_probability(self.cuttable(y), plan.cut, self.horizon)
        return log_ratio + backward - self.cut.log_probability(self.cuttable(x), plan.cut, self.horizon)

    def watch(self, x: Record, cut: int, difference: int, log_u: float = 0.0) -> FallingSum | None:
        """Early rejection: in the window logz is ≤ 0 (α ≥ 1), in the tail log p is."""
        if self.maximise:
            return FallingSum(float(x.logp[difference:].sum()), lambda logp, logz: logp)
        if self.alpha < 1.0:
            return None
        end, column = cut + self.window, self.column
        limit = log_u + float(x.logz[difference + 1 : end, column].sum()) + self.alpha * float(x.logp[end:].sum())
        limit += self.cut.log_probability(self.cuttable(x), cut, self.horizon)
        return FallingSum(limit, lambda logp, logz: logz[column], self._bound(x, cut, difference), cancels=True)

    def _bound(self, x: Record, cut: int, difference: int) -> Bound:
        """Of log λ(cut | y): the law's own bound as far as the positions where a window may begin."""
        visible = self.cuttable(x)
        if difference >= len(visible):  # y has the same entropies there as x
            value = self.cut.log_probability(visible, cut, self.horizon)
            return lambda _: value
        grow, value, position = self.cut.bound(visible[:difference], cut, self.horizon), 0.0, difference

        def step(entropy: float) -> float:
            nonlocal value, position
            if position < len(visible):
                value = grow(entropy)
            position += 1
            return value

        return step
