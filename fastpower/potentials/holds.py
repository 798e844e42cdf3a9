"""A condition on the text: answers that do not meet it are ruled out, or made less likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential
from fastpower.potentials.penalty import check_log_weight, penalty


@dataclass(frozen=True)
class Holds(Potential):
    """φ = 1 where ``condition`` holds of the text.

    Attributes:
        condition: Text → true or false.
        log_weight: Nats by which answers are favoured of which it holds; None rules the others out.
    """

    condition: Callable[[str], bool]
    log_weight: float | None = None
    upper: ClassVar[float] = 0.0
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_log_weight(self.log_weight)

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [penalty(bool(self.condition(answer.text)), self.log_weight) for answer in answers]
