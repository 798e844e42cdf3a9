"""What a task is: problems, the prompt of each, and how an answer is graded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpower.evaluate.grading.graders import Grade


@dataclass(frozen=True)
class Problem:
    """One question. ``id`` is unique inside its task and keys the randomness of its answers."""

    id: str
    question: str  #: the whole user message, instructions included
    reference: str  #: the expected answer, as text
    raw_prompt: str | None = None  #: what a base model continues, where that is not the question itself
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Problems and their grader.

    ``grade(problem, text)`` is given the generated text only and never raises for a wrong, empty or garbled answer.
    ``max_new_tokens`` and ``alpha`` are the papers' settings, used where the user gives none.
    """

    name: str
    problems: Sequence[Problem]
    grade: Callable[[Problem, str], Grade]
    alpha: float = 4.0
    max_new_tokens: int = 3072
    check: Callable[[], None] = lambda: None  #: raises before any compute where the grader cannot work here
