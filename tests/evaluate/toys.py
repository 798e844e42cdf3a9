"""A toy task on a toy model: quick, exact, bit-reproducible."""

from __future__ import annotations

from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.evaluate.grading.graders import Grade
from fastpower.evaluate.tasks import Problem, Task
from fastpower.language_model import LanguageModel


def toy_model() -> LanguageModel:
    """5 tokens, 0 is EOS."""
    return LanguageModel(ToyDecoder(random_logits(5, seed=7, eos=0, eos_bias=-1.5), 5, [0]), name="toy")


def _grade(problem: Problem, text: str) -> Grade:
    words = text.split()
    answer = words[-1] if words else None
    return Grade(answer == problem.reference, answer, "" if words else "empty")


def toy_task(size: int = 5) -> Task:
    problems = [Problem(f"p{i}", f"{1 + i % 4} {1 + i // 4}", str(1 + i % 4)) for i in range(size)]
    return Task("toy", problems, _grade, alpha=2.5, max_new_tokens=11)
