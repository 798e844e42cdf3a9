"""What is sampled: π(x) ∝ p(x)^α over answers that end at their first EOS, stop string or at the horizon."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from fastpower.potential import Potential, as_potential

Schedule = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PowerTarget:
    """The power distribution of a model, and how samplers may warm up to it.

    Attributes:
        alpha: Exponent, > 0 (4 in the papers; 1 is the model itself).
        horizon: The most new tokens an answer may have; it is part of the target.
        schedule: For annealed samplers, (position, exponent) steps with increasing positions whose last exponent is
            alpha; () means alpha from the start.
        stop: Strings that end an answer, with the first token with which its text contains one of them; part of the
            target, since what has ended is not continued.
        potential: log φ of answers, for the target p(x)^α φ(x): a ``Potential``, or a function of token ids.

    Examples:
        >>> PowerTarget(alpha=4.0, horizon=100).stages(block=32)
        [32, 64, 96, 100]
        >>> ramp = PowerTarget(4.0, 100, schedule=((0, 1.0), (10, 2.5), (20, 4.0)))
        >>> [ramp.exponent(position) for position in (0, 9, 10, 99)]
        [1.0, 1.0, 2.5, 4.0]
    """

    alpha: float = 4.0
    horizon: int = 3072
    schedule: Schedule = ()
    stop: tuple[str, ...] = ()
    potential: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", stop_strings(self.stop))
        object.__setattr__(self, "potential", as_potential(self.potential))
        if not (isinstance(self.alpha, (int, float)) and math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be a finite number > 0, got {self.alpha}; 1 samples the model itself")
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1 new token, got {self.horizon}")
        if self.schedule:
            positions = [position for position, _ in self.schedule]
            if positions != sorted(set(positions)) or positions[0] < 0:
                raise ValueError(f"schedule positions must increase from 0, got {positions}")
            if not all(math.isfinite(a) and a > 0 for _, a in self.schedule):
                raise ValueError(f"schedule exponents must be finite and > 0, got {[a for _, a in self.schedule]}")
            if self.schedule[-1][1] != self.alpha:
                raise ValueError(
                    f"schedule ends at exponent {self.schedule[-1][1]}, never reaching alpha = {self.alpha}; "
                    f"append (position, {self.alpha})"
                )

    def __repr__(self) -> str:
        """Without what is not used: settings that a run folder keeps are the same as before there was more to set."""
        shown = [f for f in fields(self) if f.name not in ("stop", "potential") or getattr(self, f.name)]
        return f"PowerTarget({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def potential_at(self, horizon: int) -> Potential | None:
        """The potential of answers up to ``horizon``: stages that only warm up have none."""
        potential: Potential | None = self.potential
        return potential if horizon == self.horizon else None

    def stages(self, block: int) -> list[int]:
        """Horizons kB, k = 1, 2, …, the last one being ``horizon`` (Karan & Du, arXiv 2510.14901, Algorithm 1)."""
        if block < 1:
            raise ValueError(f"block must be at least 1 token, got {block}")
        return [*range(block, self.horizon, block), self.horizon]

    def exponent(self, position: int) -> float:
        """The exponent in force for the answer's token ``position`` (0-based)."""
        alpha = self.alpha if not self.schedule or self.schedule[0][0] == 0 else 1.0
        for start, value in self.schedule:
            if position < start:
                break
            alpha = value
        return alpha


def stop_strings(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """Stop strings as they are meant: one, several or none.

    Raises:
        ValueError: Something that is no text, or an empty one.

    Examples:
        >>> stop_strings("x"), stop_strings(["a", "b"]), stop_strings(None)
        (('x',), ('a', 'b'), ())
    """
    if stop is not None and not isinstance(stop, Iterable):
        raise ValueError(f"stop must be a text or several, got {stop!r}")
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop must be texts of at least one character, got {string!r}")
    return strings


def linear_ramp(alpha: float, tokens: int, steps: int | None = None) -> Schedule:
    """Exponents rising linearly from 1 to ``alpha`` over ``tokens`` positions (Power-SMC, arXiv 2602.10273).

    Args:
        alpha: The last exponent.
        tokens: Position from which it holds.
        steps: Number of equal jumps; by default one per token, at most 16.

    Examples:
        >>> linear_ramp(4.0, 30, steps=3)
        ((0, 1.0), (10, 2.0), (20, 3.0), (30, 4.0))
    """
    if tokens < 1 or alpha == 1.0:
        return ()
    count = min(tokens, 16) if steps is None else steps
    if not 1 <= count <= tokens:
        raise ValueError(f"steps must lie in [1, {tokens}], got {count}")
    ramp = [(round(i * tokens / count), 1.0 + (alpha - 1.0) * i / count) for i in range(count)]
    return (*ramp, (tokens, alpha))
