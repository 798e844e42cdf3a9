"""A reward model, or any other score of texts that is computed for many at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastpower.potential import Answer, Potential


@dataclass(frozen=True)
class Reward(Potential):
    """φ = exp(score / temperature).

    Attributes:
        score: Texts → one score each; −inf rules one out. It is called with up to ``batch`` texts.
        temperature: > 0: the smaller, the more a score counts against log p^α.
        most: No score is larger; with it, moves that cannot be accepted end early.
        batch: Most texts of one call.
    """

    score: Callable[[list[str]], Sequence[float]]
    temperature: float = 1.0
    most: float = math.inf
    batch: int = 32
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise ValueError(f"temperature must be a finite number > 0, got {self.temperature}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1 text, got {self.batch}")

    @property
    def upper(self) -> float:
        """Of log φ."""
        return self.most / self.temperature

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        texts = [answer.text for answer in answers]
        scores: list[float] = []
        for first in range(0, len(texts), self.batch):
            part = texts[first : first + self.batch]
            found = list(self.score(part))
            if len(found) != len(part):
                raise ValueError(f"score gave {len(found)} values for {len(part)} texts")
            scores += found
        return [float(score) / self.temperature for score in scores]
