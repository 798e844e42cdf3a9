"""A regular expression that is to be found in the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential
from fastpower.potentials.penalty import check_log_weight, penalty


@dataclass(frozen=True)
class Matches(Potential):
    r"""φ = 1 where a regular expression is found in the text; ``\A…\Z`` asks for the whole text.

    Attributes:
        pattern: As of the module ``re``; flags stand in it, ``(?is)…``.
        log_weight: Nats by which answers are favoured that match; None rules the others out.
    """

    pattern: str
    log_weight: float | None = None
    upper: ClassVar[float] = 0.0
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_log_weight(self.log_weight)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [penalty(re.search(self.pattern, answer.text) is not None, self.log_weight) for answer in answers]
