"""Answers that end by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential
from fastpower.potentials.penalty import check_log_weight, penalty


@dataclass(frozen=True)
class Closed(Potential):
    """φ = 1 for answers that end with an end-of-sequence token or a stop string, instead of being cut at the horizon.

    Attributes:
        log_weight: Nats by which closed answers are favoured; None rules the others out.
    """

    log_weight: float | None = None
    upper: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_log_weight(self.log_weight)

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [penalty(answer.ended, self.log_weight) for answer in answers]
