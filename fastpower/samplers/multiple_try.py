"""Multiple-try Metropolis (Liu, Liang, Wong 2000) on whole answers: Metropolis–Hastings whose moves have K tries.

The move, its weights and its acceptance are in ``move.py``; K = 1 is Metropolis–Hastings, token for token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastpower.chains.record import Record
from fastpower.samplers.metropolis import MetropolisHastings


@dataclass(frozen=True)
class MultipleTry(MetropolisHastings):
    """Exact multiple-try Metropolis for p^α.

    Attributes:
        tries: K suffixes, or windows, per move, decoded together.
    """

    tries: int = 4
    method: ClassVar[str] = "mtm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1 per move, got {self.tries}")
        if self.maximise and self.tries > 1:
            raise ValueError(
                f"maximise compares one try with the current answer, got tries = {self.tries}; use tries=1"
            )

    @property
    def most_tries(self) -> int:
        return self.tries

    def tries_at(self, x: Record, cut: int) -> int:
        return self.tries
