"""Potentials: what an answer is worth beside its probability. The target becomes π(x) ∝ p(x)^α φ(x).

A potential is terminal: it looks at whole answers, and says log φ, −inf where an answer is ruled out. Where it can say
something of unfinished answers, a *twist* log ψ lets populations drop what leads nowhere; it is divided out again, so
that the target stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastpower.errors import InvalidPotential


class Answer:
    """What a potential sees.

    Attributes:
        tokens: Token ids of the answer, without the prompt's.
        ended: By an end-of-sequence token or a stop string; False: the horizon cut it off, or it is unfinished.
    """

    __slots__ = ("_text", "_told", "ended", "tokens")

    def __init__(self, tokens: list[int], ended: bool, text: Callable[[], str]) -> None:
        self.tokens, self.ended, self._text = tokens, ended, text
        self._told: str | None = None

    @property
    def text(self) -> str:
        """The answer as a result shows it: special tokens and what a stop string begins are left out."""
        if self._told is None:
            self._told = self._text()
        return self._told


class Potential:
    """log φ of answers. Subclass it, and define ``log_values``."""

    @property
    def upper(self) -> float:
        """No log φ is larger. A move that could not be accepted with it is dropped early, and φ is not asked."""
        return math.inf

    @property
    def needs_text(self) -> bool:
        """Whether it reads texts: models without a tokenizer are refused before anything is computed."""
        return False

    @property
    def twisted(self) -> bool:
        """Whether ``log_twists`` is defined."""
        return False

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        """log φ of each answer, which has ended or has the horizon's length; −inf rules it out."""
        raise TypeError(f"{type(self).__name__} must define log_values(answers)")

    def log_twists(self, answers: Sequence[Answer]) -> Sequence[float]:
        """log ψ of each unfinished answer; it must be above −inf wherever an answer with φ > 0 may come of it."""
        raise TypeError(f"{type(self).__name__} is twisted and must define log_twists(answers)")


@dataclass(frozen=True)
class OfTokens(Potential):
    """A function of an answer's token ids.

    Attributes:
        function: Token ids → log φ.
        upper: No value of it is larger.
        twist: Token ids of an unfinished answer → log ψ; None has no twist.
    """

    function: Callable[[list[int]], float]
    upper: float = math.inf
    twist: Callable[[list[int]], float] | None = None

    @property
    def twisted(self) -> bool:
        """Whether there is a twist."""
        return self.twist is not None

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [self.function(list(answer.tokens)) for answer in answers]

    def log_twists(self, answers: Sequence[Answer]) -> Sequence[float]:
        assert self.twist is not None
        return [self.twist(list(answer.tokens)) for answer in answers]


def as_potential(given: Any) -> Potential | None:
    """A potential as it may be given: one, or a function of token ids.

    Raises:
        ValueError: Neither.
    """
    if given is None or isinstance(given, Potential):
        return given
    if callable(given) and not isinstance(given, type):
        return OfTokens(given)
    raise ValueError(
        f"potential must be a function of an answer's token ids, or one of fastpower.potentials; got {given!r}"
    )


def log_values(potential: Potential, answers: Sequence[Answer], *, twist: bool = False) -> list[float | Exception]:
    """Values of all answers, checked; an answer that fails has its error, and the others their values.

    Args:
        potential: What is asked.
        answers: Whole ones, or unfinished ones with ``twist``.
        twist: Ask for log ψ instead of log φ.
    """
    ask = potential.log_twists if twist else potential.log_values
    try:
        found = list(ask(answers))
        if len(found) != len(answers):
            raise InvalidPotential(f"{potential!r} gave {len(found)} values for {len(answers)} answers")
    except Exception as error:
        if len(answers) > 1:  # whose fault it is: each alone
            return [value for answer in answers for value in log_values(potential, [answer], twist=twist)]
        told = error if isinstance(error, InvalidPotential) else InvalidPotential(f"{potential!r} raised {error!r}")
        told.__cause__ = None if told is error else error
        return [told]
    upper = math.inf if twist else potential.upper
    return [_checked(potential, value, answer, upper) for value, answer in zip(found, answers, strict=True)]


def _checked(potential: Potential, value: Any, answer: Answer, upper: float) -> float | Exception:
    said = f"{potential!r} gave {value!r} for an answer of {len(answer.tokens)} tokens"
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return InvalidPotential(f"{said}; log φ is wanted, 0 where it holds and −inf where not: potentials.Holds")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return InvalidPotential(f"{said}; log φ must be a number")
    if math.isnan(number) or number == math.inf:
        return InvalidPotential(f"{said}; log φ must be a finite number, or −inf for an answer that is ruled out")
    if number > upper + 1e-9 * (1.0 + abs(upper)):
        return InvalidPotential(f"{said}, above its upper = {upper}: moves would be dropped that can be accepted")
    return number
