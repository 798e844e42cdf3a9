"""Answers of a certain length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential
from fastpower.potentials.penalty import check_log_weight, penalty


@dataclass(frozen=True)
class LengthWindow(Potential):
    """φ = 1 for answers of ``least`` to ``most`` tokens, that which ends them included.

    Populations drop an answer as soon as it is too long (an adapted twist).

    Attributes:
        least: Tokens at least.
        most: Tokens at most.
        log_weight: Nats by which answers of such a length are favoured; None rules the others out.
    """

    least: int = 1
    most: float = math.inf
    log_weight: float | None = None
    upper: ClassVar[float] = 0.0
    twisted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_log_weight(self.log_weight)
        if not 1 <= self.least <= self.most:
            raise ValueError(f"1 ≤ least ≤ most tokens are needed, got least = {self.least}, most = {self.most}")

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [penalty(self.least <= len(answer.tokens) <= self.most, self.log_weight) for answer in answers]

    def log_twists(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [penalty(len(answer.tokens) <= self.most, self.log_weight) for answer in answers]
