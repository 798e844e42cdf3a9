"""One move of a Markov chain as data: cut, uniform, K tries with their first differences, and what is under way.

A move from x cuts at m ~ λ(· | x) and draws K suffixes independently from q ∝ p^α, with weights relative to x

    log w_j = Σ_{t≥m} logz_t(y_j) − Σ_{t≥m} logz_t(x) + log λ(m | y_j) − log λ(m | x),

where logz_t = log Σ_v p(v | x_<t)^α, each sum over that answer's own full suffix; up to the first difference all terms
are equal and cancel. J is drawn with probability ∝ w_J and accepted if log U < log Σ_j w_j − log (1 + Σ_{i≠J} w_i)
(Liu, Liang, Wong 2000). The proposal does not depend on the current suffix, so the tries not chosen, with x, serve as
the reference set. K = 1 is Metropolis–Hastings: log U < log w. K may depend on what precedes the cut and on the entropy
there: x and y share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpower.chains.chain import Chain, Ticket
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Suffix
from fastpower.potential import Potential
from fastpower.random import Purpose, select
from fastpower.samplers.cuts import CutLaw
from fastpower.samplers.early_rejection import FallingSum, Race
from fastpower.samplers.proposal import Redraw, redraw
from fastpower.samplers.tilt import entered, hopeless, room, tilted, weighed

Proposed = Generator[Any, Any, tuple[Record | None, float]]


def one_try(x: Record, cut: int) -> int:
    """K = 1 everywhere: Metropolis–Hastings."""
    return 1


@dataclass(frozen=True, slots=True)
class Move:
    """A move under way; it stays where it is if ``cut`` is None.

    Attributes:
        cut: Where it cuts.
        log_u: log U of its acceptance.
        labels: Of its randomness.
        plans: Its K tries.
        tickets: Of each try what is decoded for it; None where nothing has to be.
        race: What is known of their weights while they grow; None without early rejection.
    """

    cut: int | None
    log_u: float
    labels: tuple[int | str, ...] = ()
    plans: tuple[Redraw, ...] = ()
    tickets: tuple[Ticket | None, ...] = ()
    race: Race | None = None

    def cancel(self) -> None:
        """Drop what was decoded for it."""
        for ticket in self.tickets:
            if ticket is not None:
                counts = ticket.chain.counts
                counts.prefetch_dropped_tokens += ticket.decoded
                counts.decoded_tokens -= ticket.decoded
                ticket.cancel()


@dataclass(frozen=True, slots=True)
class MoveKernel:
    """The move that redraws everything behind its cut, at one horizon and exponent.

    Attributes:
        alpha: The exponent.
        horizon: Tokens of an answer, at most.
        cut: The cut law λ.
        exponents: Those recorded with every token.
        column: Which of them is alpha.
        skip: Decode from the first difference on only (lossless).
        early_rejection: Drop a move that cannot be accepted any more (lossless).
        maximise: Accept iff log p rises instead (the variant α → ∞); for K = 1.
        potential: Asked about whole proposals; None at horizons that only warm up.
        tries: The answer and a cut → K; may depend on what precedes the cut and the entropy there, on nothing after.
    """

    alpha: float
    horizon: int
    cut: CutLaw
    exponents: tuple[float, ...]
    column: int = 0
    skip: bool = True
    early_rejection: bool = True
    maximise: bool = False
    tries: Callable[[Record, int], int] = one_try
    potential: Potential | None = None

    def start(self, chain: Chain, x: Record, *labels: int | str) -> Move:
        """Begin a move whose randomness is keyed by ``labels``. U and the first differences are known at once."""
        log_u = math.log(chain.uniform(Purpose.ACCEPT, *labels))
        entropy = self.cuttable(x)
        cut = self.cut.draw(entropy, self.horizon, chain.uniform(Purpose.CUT, *labels)) if len(entropy) else None
        if cut is None:
            return Move(None, log_u)
        # Try 0 has the keys of a Metropolis–Hastings move: K = 1 makes the same chain.
        keys = [labels if j == 0 else (*labels, j) for j in range(self.tries(x, cut))]
        plans = tuple(self.redraw(chain, x, cut, *key) for key in keys)
        race = self.race(x, plans, log_u) if self.early_rejection and self._falls(x) else None
        tickets = tuple(None if plan.rollout is None else chain.start(plan.rollout) for plan in plans)
        return Move(cut, log_u, labels, plans, tickets, race)

    def _falls(self, x: Record) -> bool:
        """Whether what bounds a weight falls while a try grows, from a bound that there is."""
        if self.maximise:
            return self.potential is None
        return self.alpha >= 1.0 and room(self.potential, x) < math.inf

    def cuttable(self, x: Record) -> Array:
        """Entropies of the positions where a move may cut."""
        return x.entropy

    def redraw(self, chain: Chain, x: Record, cut: int, *labels: int | str) -> Redraw:
        """The redraw of x from ``cut``, not yet started."""
        key = chain.key(*labels)
        return redraw(chain, x, cut, self.horizon, key, self.alpha, self.exponents, column=self.column, skip=self.skip)

    def end(self, cut: int) -> int:
        """Where what is redrawn ends, at most."""
        return self.horizon

    def race(self, x: Record, plans: Sequence[Redraw], log_u: float) -> Race:
        """Watch the tries' rollouts, not yet started, for a move that cannot be accepted any more."""
        alone = len(plans) == 1  # then U is in the limit itself: less to do for every token
        sums = [
            None if plan.difference is None else self.watch(x, plan.cut, plan.difference, log_u if alone else 0.0)
            for plan in plans
        ]
        race = Race(0.0 if alone else log_u, sums)
        for j, plan in enumerate(plans):
            if plan.difference is None:
                race.margins[j] = 0.0  # this try is x itself
            elif plan.rollout is not None:
                plan.rollout.watch = sums[j] if alone else race.watch(j)
        return race

    def finish(self, chain: Chain, x: Record, move: Move) -> Proposed:
        """The proposal y and its log acceptance ratio; y is None where there is none, x where nothing differs."""
        for plan in move.plans:
            book(chain, plan)
        tickets = [ticket for ticket in move.tickets if ticket is not None]
        results = (yield tickets) if tickets else []
        if all(plan.difference is None for plan in move.plans):
            return x, 0.0
        drawn = iter(results)
        suffixes = [None if ticket is None else next(drawn) for ticket in move.tickets]
        if any(suffix.gave_up for suffix in results):
            missing = 0
            for plan, suffix in zip(move.plans, suffixes, strict=True):
                if suffix is not None and suffix.gave_up and plan.difference is not None:
                    missing += self.end(plan.cut) - plan.difference - len(suffix.tokens)
            return dropped(chain, missing)
        candidates = yield from self.candidates(chain, x, move, suffixes)
        if candidates is None:
            return None, -math.inf
        if self.potential is not None:
            log_w = float(np.logaddexp.reduce(self.log_weights(x, move, candidates)))
            if not self.maximise and hopeless(log_w, self.potential, x, move.log_u):
                return None, -math.inf
            candidates = yield from weighed(chain, self.potential, candidates)
        return self.choose(chain, x, move, candidates)

    def candidates(
        self, chain: Chain, x: Record, move: Move, suffixes: Sequence[Suffix | None]
    ) -> Generator[Any, Any, list[Record | None] | None]:
        """The proposed answers, x where nothing differs, None for one without weight; no list: the move is dropped."""
        yield from ()
        return [self.proposal(x, plan, suffix) for plan, suffix in zip(move.plans, suffixes, strict=True)]

    def choose(
        self, chain: Chain, x: Record, move: Move, candidates: Sequence[Record | None]
    ) -> tuple[Record | None, float]:
        """One of the candidates, and the log of what U is compared with."""
        if self.maximise:
            [y] = candidates
            return y, math.inf if y is not None and self._height(y) > self._height(x) else -math.inf
        log_w = tilted(x, candidates, self.log_weights(x, move, candidates))
        total = float(np.logaddexp.reduce(log_w))
        if len(candidates) == 1 or total == -math.inf:  # nothing can be reached back from: stay
            return candidates[0], math.inf if entered(x, candidates[0]) else total
        chosen = select(np.exp(log_w - total), chain.uniform(Purpose.SELECT, *move.labels))
        if entered(x, candidates[chosen]):
            return candidates[chosen], math.inf
        reference = float(np.logaddexp.reduce(np.append(np.delete(log_w, chosen), 0.0)))
        return candidates[chosen], total - reference

    def log_weights(self, x: Record, move: Move, candidates: Sequence[Record | None]) -> Array:
        """(K,) log w_j for p^α, without the potential."""
        pairs = zip(candidates, move.plans, strict=True)
        return np.array([-math.inf if y is None else self.log_acceptance(x, y, plan) for y, plan in pairs])

    def _height(self, x: Record) -> float:
        """What a maximiser climbs."""
        return x.total_logp if x.log_potential is None else self.alpha * x.total_logp + x.log_potential

    def proposal(self, x: Record, plan: Redraw, suffix: Suffix | None) -> Record:
        """The proposed answer."""
        if plan.difference is None or suffix is None:
            return x
        return x.spliced(plan.difference, suffix)

    def log_acceptance(self, x: Record, y: Record, plan: Redraw) -> float:
        """log w of one try: log of π(y) λ(m|y) q(x|y) / (π(x) λ(m|x) q(y|x)); 0 for y = x."""
        if plan.difference is None:
            return 0.0
        tail = plan.difference + 1
        log_ratio = float(y.logz[tail:, self.column].sum()) - float(x.logz[tail:, self.column].sum())
        backward = self.cut.log_probability(y.entropy, plan.cut, self.horizon)
        return log_ratio + backward - self.cut.log_probability(x.entropy, plan.cut, self.horizon)

    def watch(self, x: Record, cut: int, difference: int, log_u: float = 0.0) -> FallingSum | None:
        """What bounds log w of a try that first differs at ``difference``: logz is ≤ 0 for α ≥ 1."""
        if self.maximise:
            return FallingSum(float(x.logp[difference:].sum()), lambda logp, logz: logp)
        limit = log_u - room(self.potential, x) + float(x.logz[difference + 1 :, self.column].sum())
        limit += self.cut.log_probability(x.entropy, cut, self.horizon)
        bound = self.cut.bound(x.entropy[:difference], cut, self.horizon)
        column = self.column
        return FallingSum(limit, lambda logp, logz: logz[column], bound, cancels=True)


def book(chain: Chain, plan: Redraw) -> None:
    """Count what a redraw that is used (not one decoded ahead and dropped) saved."""
    chain.counts.skipped_tokens += plan.skipped
    chain.counts.free_moves += plan.rollout is None


def dropped(chain: Chain, missing: int) -> tuple[None, float]:
    """Count a move rejected early, ``missing`` positions before its end; what ``finish`` returns for it."""
    chain.counts.early_rejections += 1
    chain.counts.early_rejection_tokens += missing
    return None, -math.inf
