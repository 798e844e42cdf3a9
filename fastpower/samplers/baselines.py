"""What power sampling is compared with: the model itself, a lower temperature, and the best of several draws."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Watch
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class Plain:
    """One draw from p itself. logz is recorded at the target's exponent, so that answers and costs compare."""

    target: PowerTarget = field(default_factory=PowerTarget)
    method: ClassVar[str] = "plain"

    @property
    def exponent(self) -> float:
        """Of the law that tokens are drawn from."""
        return 1.0

    def run(self, chain: Chain) -> Run:
        """One rollout."""
        return Watched(self).run(chain)


@dataclass(frozen=True)
class LowTemperature:
    """One draw token by token at temperature 1/alpha. Not p^alpha: it ignores what a token leads to."""

    target: PowerTarget = field(default_factory=PowerTarget)
    method: ClassVar[str] = "low_temperature"

    @property
    def exponent(self) -> float:
        """Of the law that tokens are drawn from."""
        return self.target.alpha

    def run(self, chain: Chain) -> Run:
        """One rollout."""
        return Watched(self).run(chain)


@dataclass(frozen=True)
class Watched:
    """A sampler that draws once and keeps it, and who looks on: the same draw, told token by token."""

    sampler: Plain | LowTemperature
    watch: Watch | None = None

    @property
    def target(self) -> PowerTarget:
        """That of the sampler."""
        return self.sampler.target

    @property
    def method(self) -> str:
        """The sampler's."""
        return self.sampler.method

    def run(self, chain: Chain) -> Run:
        """One rollout."""
        [record] = yield from draws(chain, self.target, self.sampler.exponent, 1, watch=self.watch)
        return Outcome(record, exact=self.target.alpha == 1.0)


@dataclass(frozen=True)
class BestOfN:
    """The draw of highest log p among several. No power distribution: marked inexact.

    Attributes:
        n: Draws.
        budget: If given, draws go on until this many tokens are decoded instead (compute-matched best-of-N; the last
            draw may exceed it).
        temperature_exponent: Draws are from p^e token by token; 1 is the model itself.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    n: int = 8
    budget: int | None = None
    temperature_exponent: float = 1.0
    method: ClassVar[str] = "best_of_n"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1 draw, got {self.n}")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"budget must be at least 1 token, got {self.budget}")
        if not self.temperature_exponent > 0:
            raise ValueError(f"temperature_exponent must be > 0, got {self.temperature_exponent}")

    def run(self, chain: Chain) -> Run:
        """n rollouts at once, or one after another until the budget is spent."""
        records: list[Record] = []
        if self.budget is None:
            records = yield from draws(chain, self.target, self.temperature_exponent, self.n)
        else:
            while chain.counts.decoded_tokens < self.budget:
                records += yield from draws(chain, self.target, self.temperature_exponent, 1, first=len(records))
        best = max(records, key=lambda record: record.total_logp)
        diagnostics = {"draws": len(records), "logp_of_draws": [record.total_logp for record in records]}
        return Outcome(best, diagnostics=diagnostics, exact=False)


def draws(
    chain: Chain, target: PowerTarget, alpha: float, count: int, first: int = 0, watch: Watch | None = None
) -> Generator[Any, Any, list[Record]]:
    """``count`` independent answers from q ∝ p^alpha, token by token."""
    nothing = Record.empty(chain.prompt)
    suffixes = yield [
        chain.onward(nothing, target.horizon, chain.key("answer", i), alpha, (target.alpha,), watch=watch)
        for i in range(first, first + count)
    ]
    return [nothing.spliced(0, suffix) for suffix in suffixes]
