"""Parallel power tempering: exact chains at rising exponents that exchange answers.

From Theodoropoulos et al., *Explore Broadly, Reason Sharply*. Rung k samples p^{α_k} by Metropolis–Hastings at its own
temperature; neighbours swap with log-probability
(α_{k+1} − α_k)(log p(x^k) − log p(x^{k+1})). Swapping moves pointers only, but every token needs logz at every rung's
exponent. The answer is the last rung's; a ladder of one rung is Metropolis–Hastings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.random import Purpose
from fastpower.samplers.cuts import CutLaw, UniformCut
from fastpower.samplers.move import MoveKernel
from fastpower.samplers.staged import event
from fastpower.samplers.tilt import in_support, weighed
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class ParallelTempering:
    """Chains at several exponents that swap answers; the last one's are the sampler's.

    Attributes:
        ladder: Increasing exponents, the last one being the target's alpha; () takes 1, 2, … doubling up to alpha.
        block: As in ``MetropolisHastings``.
        moves: As in ``MetropolisHastings``; one sweep is a move of every rung and a swap.
        cut: As in ``MetropolisHastings``.
        skip: As in ``MetropolisHastings``.
        early_rejection: As in ``MetropolisHastings``.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    block: int = 192
    moves: int = 10
    ladder: tuple[float, ...] = ()
    cut: CutLaw = field(default_factory=UniformCut)
    skip: bool = True
    early_rejection: bool = True
    method: ClassVar[str] = "tempering"
    takes_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.target.stages(self.block)
        if self.moves < 1:
            raise ValueError(f"moves must be at least 1 per stage, got {self.moves}")
        rungs = self.rungs
        if any(a >= b for a, b in itertools.pairwise(rungs)) or rungs[0] <= 0:
            raise ValueError(f"ladder must be increasing exponents > 0, got {rungs}")
        if rungs[-1] != self.target.alpha:
            raise ValueError(f"ladder must end at alpha = {self.target.alpha}, got {rungs}")

    @property
    def rungs(self) -> tuple[float, ...]:
        """The ladder in use."""
        if self.ladder:
            return self.ladder
        alpha, rungs = self.target.alpha, [1.0]
        while rungs[-1] * 2 < alpha:
            rungs.append(rungs[-1] * 2)
        return (*rungs, alpha) if alpha > 1.0 else (alpha,)

    @property
    def planned_moves(self) -> int:
        """The most moves the answering rung makes."""
        return self.moves * len(self.target.stages(self.block))

    def run(self, chain: Chain) -> Run:
        """One run of the whole ladder."""
        rungs, trace = self.rungs, Trace()
        xs = [Record.empty(chain.prompt, len(rungs)) for _ in rungs]
        swaps = [[0, 0] for _ in rungs[1:]]  # tried, made
        for stage, horizon in enumerate(self.target.stages(self.block)):
            yield from self._extend(chain, xs, horizon, stage)
            if all(x.ended for x in xs) and horizon != self.target.horizon:
                continue
            potential = self.target.potential_at(horizon)
            if potential is not None:  # every rung has it whole, so that it cancels where rungs exchange answers
                xs[:] = [x for x in (yield from weighed(chain, potential, xs)) if x is not None]
            kernels = [
                MoveKernel(alpha, horizon, self.cut, rungs, k, self.skip, self.early_rejection, potential=potential)
                for k, alpha in enumerate(rungs)
            ]
            for i in range(self.moves):
                chain.partial = lambda: self._outcome(xs[-1], trace, complete=False)
                # The last rung has the keys of a single chain: a ladder of one rung is Metropolis–Hastings itself.
                labels = [("move", stage, i, k) for k in range(len(rungs) - 1)] + [("move", stage, i)]
                moves = [kernel.start(chain, xs[k], *labels[k]) for k, kernel in enumerate(kernels)]
                for k, (kernel, move) in enumerate(zip(kernels, moves, strict=True)):
                    y, log_ratio = yield from kernel.finish(chain, xs[k], move)
                    accepted = move.cut is not None and y is not None and move.log_u < log_ratio
                    if k == len(rungs) - 1:  # costs are all rungs', moves are those of the chain that answers
                        chain.moved(accepted)
                    if accepted and y is not None:
                        xs[k] = y
                    trace.append(event(stage, horizon, move.cut, accepted, xs[k]) | {"rung": k})
                self._swap(chain, xs, stage, i, swaps)
        diagnostics = {"ladder": list(rungs), "swap_rate": [made / tried if tried else None for tried, made in swaps]}
        return self._outcome(xs[-1], trace, diagnostics)

    def _outcome(
        self, x: Record, trace: Trace, diagnostics: dict[str, Any] | None = None, *, complete: bool = True
    ) -> Outcome:
        """With the answering rung's exponent first among the numbers of every position, as in other samplers."""
        answer = replace(x, logz=np.roll(x.logz, 1, axis=1))
        return Outcome(answer, list(trace), diagnostics or {}, exact=self.cut.irreducible, complete=complete)

    def _extend(self, chain: Chain, xs: list[Record], horizon: int, stage: int) -> Generator[Any, Any, None]:
        """Grow every unfinished rung to the horizon, all at once."""
        growing = [k for k, x in enumerate(xs) if not x.ended and len(x) < horizon]
        tickets = [
            chain.start(
                chain.onward(
                    xs[k],
                    horizon,
                    chain.key("extend", stage) if k == len(xs) - 1 else chain.key("extend", stage, k),
                    self.rungs[k],
                    self.rungs,
                )
            )
            for k in growing
        ]
        for k, suffix in zip(growing, (yield tickets) if tickets else [], strict=True):
            xs[k] = xs[k].spliced(len(xs[k]), suffix)

    def _swap(self, chain: Chain, xs: list[Record], stage: int, i: int, swaps: list[list[int]]) -> None:
        """Offer neighbours an exchange, even pairs and odd pairs in turn."""
        for k in range(i % 2, len(xs) - 1, 2):
            log_ratio = (self.rungs[k + 1] - self.rungs[k]) * (xs[k].total_logp - xs[k + 1].total_logp)
            swaps[k][0] += 1
            if in_support(xs[k]) != in_support(
                xs[k + 1]
            ):  # an answer with φ > 0 goes up, and none goes down for another
                log_ratio = math.inf if in_support(xs[k]) else -math.inf
            if math.log(chain.uniform(Purpose.SWAP, "swap", stage, i, k)) < log_ratio:
                xs[k], xs[k + 1] = xs[k + 1], xs[k]
                swaps[k][1] += 1
