"""MATH500, AIME, GSM8K and the packaged ``math_mini``: a boxed answer, compared symbolically or as a number."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastpower.evaluate.grading.graders import (
    Grade,
    grade_boxed,
    grade_number,
    require_math_verify,
)
from fastpower.evaluate.rows import Row, read_rows
from fastpower.evaluate.tasks.base import Problem, Task
from fastpower.evaluate.tasks.sources import first, rows_of

#: The prompt of Karan & Du (2510.14901), used by all later papers for MATH500.
PROMPT = (
    "Can you solve the following math problem? {} "
    "Please reason step by step, and put your final answer within \\boxed{{}}."
)


def math500(data: str | Path | None = None, skip_bad_lines: bool = False) -> Task:
    """MATH500 (Lightman et al. 2023). Rows: ``problem`` or ``prompt``, ``answer``, ``unique_id`` or ``id``."""
    rows = rows_of("math500", data, ("HuggingFaceH4/MATH-500", None, "test"), skip_bad_lines)
    return _boxed_task("math500", rows)


def math_mini() -> Task:
    """Twelve problems in the style of MATH that come with the package."""
    return _boxed_task("math_mini", read_rows(Path(str(files("fastpower.evaluate") / "data" / "math_mini.json"))))


def aime(data: str | Path | None = None, skip_bad_lines: bool = False) -> Task:
    """AIME (answers are integers 0 … 999). Rows: ``problem``/``question``, ``answer``/``expected_answer``, an id."""
    rows = rows_of("aime", data, ("Maxwell-Jia/AIME_2024", None, "train"), skip_bad_lines)
    return _boxed_task("aime", rows)


def gsm8k(data: str | Path | None = None, skip_bad_lines: bool = False) -> Task:
    """GSM8K (Cobbe et al. 2021). Rows: ``question``, ``answer`` ending in ``#### 42``.

    Graded by the boxed number, else the last number of the answer.
    """
    rows = rows_of("gsm8k", data, ("openai/gsm8k", "main", "test"), skip_bad_lines)
    problems = []
    for i, row in enumerate(rows):
        reference = str(first(row, "answer", "target", "expected", task="gsm8k")).rsplit("####", 1)[-1]
        question = str(first(row, "question", "problem", "prompt", task="gsm8k")).strip()
        problems.append(Problem(_id(row, i, "gsm8k"), PROMPT.format(question), reference.strip().replace(",", "")))
    return Task("gsm8k", problems, _grade_number, max_new_tokens=1024)


def _boxed_task(name: str, rows: list[Row]) -> Task:
    problems = []
    for i, row in enumerate(rows):
        question = str(first(row, "problem", "Problem", "question", "prompt", task=name)).strip()
        answer = str(first(row, "answer", "Answer", "expected_answer", "target", task=name)).strip()
        metadata: dict[str, Any] = {key: row[key] for key in ("subject", "level") if key in row}
        problems.append(Problem(_id(row, i, name), PROMPT.format(question), answer, metadata=metadata))
    return Task(name, problems, _grade_boxed, check=require_math_verify)


def _id(row: Row, index: int, name: str) -> str:
    return str(first(row, "unique_id", "id", "ID", task=name, default=f"{name}/{index}"))


def _grade_boxed(problem: Problem, text: str) -> Grade:
    return grade_boxed(text, problem.reference)


def _grade_number(problem: Problem, text: str) -> Grade:
    return grade_number(text, problem.reference)
