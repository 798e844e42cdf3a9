"""Short arithmetic made from a seed: needs no download, and even small models answer some of it."""

from __future__ import annotations

import numpy as np

from fastpower.evaluate.grading.graders import Grade, grade_number
from fastpower.evaluate.tasks.base import Problem, Task


def arithmetic(size: int = 100, terms: int = 2, digits: int = 1, seed: int = 0) -> Task:
    """``size`` sums and differences of ``terms`` numbers with up to ``digits`` digits.

    Problem i depends on (seed, terms, digits, i) only: a longer set starts with the shorter one.
    """
    for name, value, least in (("size", size, 1), ("terms", terms, 2), ("digits", digits, 1)):
        if value < least:
            raise ValueError(f"arithmetic: {name} must be at least {least}, got {value}")
    problems = []
    for i in range(size):
        generator = np.random.default_rng([seed, terms, digits, i])
        numbers = generator.integers(0, 10**digits, size=terms)
        signs = generator.integers(0, 2, size=terms - 1) * 2 - 1
        expression = str(numbers[0])
        for sign, number in zip(signs, numbers[1:], strict=True):
            expression += f" {'+' if sign > 0 else '-'} {number}"
        value = int(numbers[0] + (signs * numbers[1:]).sum())
        question = f"What is {expression}? Answer with the number only."
        raw = f"Question: {question}\nAnswer:"
        problems.append(Problem(f"arithmetic-{terms}x{digits}-s{seed}/{i}", question, str(value), raw_prompt=raw))
    return Task("arithmetic", problems, _grade, max_new_tokens=32)


def _grade(problem: Problem, text: str) -> Grade:
    return grade_number(text, problem.reference)
