"""Several potentials at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastpower.errors import InvalidPotential
from fastpower.potential import Answer, Potential, as_potential


class Product(Potential):
    """φ = Π φ_i. A later one is asked only about answers that the earlier ones leave: put cheap ones first.

    Args:
        *potentials: Each as ``PowerTarget`` takes it.
    """

    def __init__(self, *potentials: Any) -> None:
        found = [as_potential(potential) for potential in potentials]
        self.potentials = tuple(potential for potential in found if potential is not None)
        if not self.potentials:
            raise ValueError("a product needs at least one potential")

    @property
    def upper(self) -> float:
        """Of all together."""
        return sum(potential.upper for potential in self.potentials)

    @property
    def needs_text(self) -> bool:
        """Whether one does."""
        return any(potential.needs_text for potential in self.potentials)

    @property
    def twisted(self) -> bool:
        """Whether one is; the others then say nothing of unfinished answers."""
        return any(potential.twisted for potential in self.potentials)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.potentials))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and self.potentials == other.potentials

    def __hash__(self) -> int:
        return hash(self.potentials)

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return _summed([potential.log_values for potential in self.potentials], answers)

    def log_twists(self, answers: Sequence[Answer]) -> Sequence[float]:
        return _summed([potential.log_twists for potential in self.potentials if potential.twisted], answers)


def _summed(asked: Sequence[Any], answers: Sequence[Answer]) -> list[float]:
    totals = [0.0] * len(answers)
    for ask in asked:
        left = [i for i, total in enumerate(totals) if total > float("-inf")]
        values = list(ask([answers[i] for i in left])) if left else []
        if len(values) != len(left):
            raise InvalidPotential(f"a factor gave {len(values)} values for {len(left)} answers")
        for i, value in zip(left, values, strict=True):
            totals[i] += value
    return totals
