"""Any function of an answer's text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential


@dataclass(frozen=True)
class OfText(Potential):
    """log φ as a function of the answer's text, which is what a result shows.

    Attributes:
        function: Text → log φ; −inf rules the answer out.
        upper: No value of it is larger; with it, moves that cannot be accepted end early.
        twist: Text of an unfinished answer → log ψ; above −inf wherever an answer with φ > 0 may come of it.
    """

    function: Callable[[str], float]
    upper: float = math.inf
    twist: Callable[[str], float] | None = None
    needs_text: ClassVar[bool] = True

    @property
    def twisted(self) -> bool:
        """Whether there is a twist."""
        return self.twist is not None

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [self.function(answer.text) for answer in answers]

    def log_twists(self, answers: Sequence[Answer]) -> Sequence[float]:
        assert self.twist is not None
        return [self.twist(answer.text) for answer in answers]
