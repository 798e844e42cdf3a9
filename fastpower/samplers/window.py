"""The move that redraws a window and keeps the tail, with K tries.

From x, n tokens long, cut at m ~ λ_w(· | x), the cut law on the first n − w positions. Draw K windows of the w tokens
from m with q ∝ p^α, keep what follows and score it behind each, all in one forward:

    log w_j = Σ_win [logz(y_j) − logz(x)] + α [log p(tail | y_j) − log p(tail | x)] + log λ_w(m | y_j) − log λ_w(m | x),

because α log p − log q = logz within the window, and nothing is drawn after it. Choice and acceptance are those of
``move.py``. A window that draws an end of sequence has weight 0: no window could lead back. The answer's length never
changes, so the move is only a part of a sampler, which mixes it with redrawn suffixes, the choice not depending on the
state.

*early_rejection*: the tail is scored piece by piece, and the move is dropped once log Σ_j w_j must stay below log U:
every log p still to come is ≤ 0. A window that breaks what follows is known after a few tokens.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastpower.chains.chain import Chain
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Score, Suffix
from fastpower.samplers.cuts import Bound
from fastpower.samplers.early_rejection import FallingSum
from fastpower.samplers.move import Move, MoveKernel, dropped
from fastpower.samplers.proposal import Redraw, redraw
from fastpower.samplers.tilt import room

# The first piece of a tail is as cheap as a step or two of decoding; the next ones grow fast, so that few are needed.
_FIRST_PIECE, _GROWTH = 16, 8


@dataclass(frozen=True, slots=True)
class WindowKernel(MoveKernel):
    """The move with kept tail.

    Attributes:
        window: Tokens redrawn, w.
    """

    window: int = 32

    def cuttable(self, x: Record) -> Array:
        return x.entropy[: max(len(x) - self.window, 0)]

    def redraw(self, chain: Chain, x: Record, cut: int, *labels: int | str) -> Redraw:
        end, key = self.end(cut), chain.key(*labels)
        head = x.first(end)
        return redraw(chain, head, cut, end, key, self.alpha, self.exponents, column=self.column, skip=self.skip)

    def end(self, cut: int) -> int:
        return cut + self.window

    def candidates(
        self, chain: Chain, x: Record, move: Move, suffixes: Sequence[Suffix | None]
    ) -> Generator[Any, Any, list[Record | None] | None]:
        found: list[Record | None] = []
        ended = [x.ended for _ in move.plans]
        for j, (plan, suffix) in enumerate(zip(move.plans, suffixes, strict=True)):
            found.append(x)
            if plan.difference is not None and suffix is not None:
                head, end = x.spliced(plan.difference, suffix), self.end(plan.cut)
                # Behind another window the tail may be no answer's: a stop string is whole earlier, or no more.
                ends = None if suffix.ended else chain.ending(head.tokens + x.tokens[end:], end, self.horizon, x.ended)
                found[j], ended[j] = (None, False) if ends is None else (head, ends)
        growing = {j: y for j, y in enumerate(found) if y is not None and y is not x}
        if move.race is not None:
            move.race.margins[[j for j, y in enumerate(found) if y is None]] = -math.inf
        for piece in self._pieces(move, len(x)):
            if not growing:
                break
            if move.race is not None and move.race.hopeless:
                dropped(chain, (len(x) - piece.start) * len(growing))
                return None
            tokens, last = x.tokens[piece], piece.stop == len(x)
            scored = yield [self.rescore(chain, y, tokens) for y in growing.values()]
            for (j, y), part in zip(list(growing.items()), scored, strict=True):
                growing[j] = found[j] = y.followed_by(tokens, part, last and ended[j])
                total = None if move.race is None else move.race.sums[j]
                if move.race is not None and total is not None:
                    weight = 1.0 if self.maximise else self.alpha
                    move.race.margins[j] = total.fall(weight * float(part.logp.sum()), part.entropy)
                    if move.race.margins[j] == -math.inf:  # impossible behind this window
                        found[j] = None
                        del growing[j]
        return found

    def _pieces(self, move: Move, length: int) -> Iterator[slice]:
        """The tail's positions, in the pieces that are scored at a time."""
        assert move.cut is not None
        begin, size = self.end(move.cut), _FIRST_PIECE if move.race is not None else length
        while begin < length:
            yield slice(begin, min(begin + size, length))
            begin, size = begin + size, size * _GROWTH

    def rescore(self, chain: Chain, head: Record, tokens: list[int]) -> Score:
        """The request that scores tokens of x's tail after ``head``."""
        return Score(head.branch, chain.prompt_length + len(head), tokens, self.exponents)

    def log_acceptance(self, x: Record, y: Record, plan: Redraw) -> float:
        if plan.difference is None:
            return 0.0
        end = self.end(plan.cut)
        inside = slice(plan.difference + 1, end)
        log_ratio = float(y.logz[inside, self.column].sum()) - float(x.logz[inside, self.column].sum())
        log_ratio += self.alpha * (float(y.logp[end:].sum()) - float(x.logp[end:].sum()))
        backward = self.cut.log_probability(self.cuttable(y), plan.cut, self.horizon)
        return log_ratio + backward - self.cut.log_probability(self.cuttable(x), plan.cut, self.horizon)

    def watch(self, x: Record, cut: int, difference: int, log_u: float = 0.0) -> FallingSum | None:
        """What bounds log w of a try: in the window logz is ≤ 0 (α ≥ 1), in the tail log p is."""
        if self.maximise:
            return FallingSum(float(x.logp[difference:].sum()), lambda logp, logz: logp)
        end, column = self.end(cut), self.column
        limit = log_u - room(self.potential, x)
        limit += float(x.logz[difference + 1 : end, column].sum()) + self.alpha * float(x.logp[end:].sum())
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
