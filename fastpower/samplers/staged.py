"""What all Markov-chain samplers share: growing an answer stage by stage (Karan & Du, arXiv 2510.14901, Algorithm 1).

Horizons T_k = kB only warm the chain up: extend the answer to T_k, make some moves at that horizon. An answer that has
ended goes straight to the last stage, which always makes its N moves at the full horizon T; returning earlier would be
biased however well the chain mixed.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.samplers.cuts import CutLaw, UniformCut
from fastpower.samplers.tilt import in_support, weighed_one
from fastpower.target import PowerTarget

Refine = Generator[Any, Any, Record]


@dataclass(frozen=True)
class Staged:
    """What Markov-chain samplers share that warm up stage by stage.

    Attributes:
        target: What is sampled.
        block: Tokens B by which the horizon grows.
        moves: N per stage.
        cut: The cut law.
        skip: Decode a proposal from its first difference on only (lossless).
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    block: int = 192
    moves: int = 10
    cut: CutLaw = field(default_factory=UniformCut)
    skip: bool = True
    takes_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.target.stages(self.block)
        if self.moves < 1:
            raise ValueError(f"moves must be at least 1 per stage, got {self.moves}")

    @property
    def planned_moves(self) -> int:
        """The most moves a run makes; answers that end early make fewer."""
        return self.moves * len(self.target.stages(self.block))

    def run(self, chain: Chain) -> Run:
        """One run: the answer after the last stage's moves."""
        x, trace = Record.empty(chain.prompt), Trace()
        start = x
        for stage, horizon in enumerate(self.target.stages(self.block)):
            begin = len(x)
            if not x.ended and len(x) < horizon:
                x = yield from extend(chain, x, horizon, self.target.alpha, stage)
            last = horizon == self.target.horizon
            if not last and (x.ended or not self.worth_refining(x, begin)):
                continue
            x = yield from weighed_one(chain, self.target.potential_at(horizon), x)
            start = x  # in the end: the first whole answer, before any move at the full horizon
            x = yield from self.refine(chain, x, horizon, stage, trace)
        outcome = self.outcome(chain, x, trace)
        outcome.diagnostics["initial_logp"] = start.total_logp
        return outcome

    def worth_refining(self, x: Record, begin: int) -> bool:
        """May a warm-up stage that added tokens ``begin`` … be left without moves? Never asked at the last stage."""
        return True

    def refine(self, chain: Chain, x: Record, horizon: int, stage: int, trace: Trace) -> Refine:
        """N moves at one horizon."""
        raise TypeError(f"{type(self).__name__} must define refine")

    def outcome(self, chain: Chain, x: Record, trace: Trace, *, complete: bool = True) -> Outcome:
        """The outcome if the run ended here."""
        return Outcome(x, list(trace), exact=self.cut.irreducible, complete=complete)


def extend(
    chain: Chain, x: Record, horizon: int, alpha: float, *labels: int, exponents: tuple[float, ...] | None = None
) -> Refine:
    """Grow an unfinished answer to ``horizon`` with q ∝ p^alpha."""
    suffix = yield chain.onward(x, horizon, chain.key("extend", *labels), alpha, exponents or (alpha,))
    return x.spliced(len(x), suffix)


def event(stage: int, horizon: int, cut: int | None, accepted: bool, x: Record) -> dict[str, Any]:
    """One line of the trace: what happened and where the chain is now."""
    line = {
        "stage": stage,
        "horizon": horizon,
        "cut": cut,
        "accepted": accepted,
        "length": len(x),
        "logp": x.total_logp,
    }
    return line if x.log_potential is None else line | {"in_support": in_support(x)}
