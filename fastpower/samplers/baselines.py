"""What power sampling is compared with: the model itself, and the model at a lower temperature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fastpower.chain import Chain, Run
from fastpower.outcome import Outcome
from fastpower.record import Record
from fastpower.requests import Rollout
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class Plain:
    """One draw from p itself. logz is recorded at the target's exponent, so that answers and costs compare."""

    target: PowerTarget = field(default_factory=PowerTarget)
    method: ClassVar[str] = "plain"

    def run(self, chain: Chain) -> Run:
        return (yield from _single(chain, self.target, 1.0))


@dataclass(frozen=True)
class LowTemperature:
    """One draw token by token at temperature 1/alpha. Not p^alpha: it ignores what a token leads to."""

    target: PowerTarget = field(default_factory=PowerTarget)
    method: ClassVar[str] = "low_temperature"

    def run(self, chain: Chain) -> Run:
        return (yield from _single(chain, self.target, self.target.alpha))


def _single(chain: Chain, target: PowerTarget, alpha: float) -> Run:
    start = chain.prompt_length
    suffix = yield Rollout(chain.prompt, start, target.horizon, chain.key("answer"), alpha, (target.alpha,))
    record = Record.empty(chain.prompt).spliced(0, suffix)
    return Outcome(record, exact=target.alpha == 1.0)
