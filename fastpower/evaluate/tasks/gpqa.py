"""GPQA-Diamond (Rein et al. 2023): four choices, shuffled by seed, the letter in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastpower.evaluate.grading.graders import Grade, grade_choice
from fastpower.evaluate.tasks.base import Problem, Task
from fastpower.evaluate.tasks.sources import first, rows_of

LETTERS = "ABCD"
PROMPT = (
    "Answer the following multiple-choice question. Please reason step by step, and put the letter of your final "
    "answer (A, B, C or D) within \\boxed{{}}.\n\n{question}\n\n{choices}"
)
_WRONG = tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))


def gpqa(data: str | Path | None = None, skip_bad_lines: bool = False, seed: int = 0) -> Task:
    """Rows: ``Question``, ``Correct Answer``, ``Incorrect Answer 1`` … ``3``, optional ``Record ID``.

    The order of the choices depends on (seed, row number) only.
    """
    rows = rows_of("gpqa", data, ("Idavidrein/gpqa", "gpqa_diamond", "train"), skip_bad_lines)
    problems = []
    for i, row in enumerate(rows):
        options = [str(first(row, name, task="gpqa")).strip() for name in ("Correct Answer", *_WRONG)]
        order = np.random.default_rng([seed, i]).permutation(4)
        choices = "\n".join(f"{LETTERS[k]}) {options[j]}" for k, j in enumerate(order))
        letter = LETTERS[int(np.flatnonzero(order == 0)[0])]
        question = PROMPT.format(question=str(first(row, "Question", "question", task="gpqa")).strip(), choices=choices)
        name = str(first(row, "Record ID", "id", task="gpqa", default=f"gpqa/{i}"))
        problems.append(Problem(name, question, letter))
    return Task("gpqa", problems, _grade, max_new_tokens=3072)


def _grade(problem: Problem, text: str) -> Grade:
    return grade_choice(text, problem.reference, LETTERS)
