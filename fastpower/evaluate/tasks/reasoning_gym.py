"""Procedural tasks of the reasoning-gym package (Stojanovski et al. 2025), each with its own scorer."""

from __future__ import annotations

from typing import Any

from fastpower.errors import FastpowerError
from fastpower.evaluate.grading.graders import Grade, boxed, last_number
from fastpower.evaluate.tasks.base import Problem, Task
from fastpower.interfaces import interface
from fastpower.suggestions import unknown


def reasoning_gym(dataset: str, size: int = 100, seed: int = 0, **options: Any) -> Task:
    """``size`` problems of reasoning-gym's ``dataset``; ``options`` are its own (``min_terms=2``, …).

    The answer is what is boxed, else what stands in ``<answer>`` tags, else the last number where the expected answer
    is one, else the last line; correct means a score of 1.
    """
    try:
        with interface("reasoning_gym"):
            import reasoning_gym as gym
            from reasoning_gym.factory import DATASETS
    except ImportError:
        raise FastpowerError("reasoning-gym tasks need `pip install '.[eval]'` in fastpower's checkout") from None
    if dataset not in DATASETS:
        raise ValueError(unknown("reasoning-gym dataset", dataset, DATASETS))
    try:
        source = gym.create_dataset(dataset, size=size, seed=seed, **options)
    except TypeError as error:  # an option this data set does not have
        known = vars(DATASETS[dataset][1]()).keys()
        raise ValueError(f"reasoning_gym:{dataset}: {error}. Its options: {', '.join(known)}") from None
    entries = [source[i] for i in range(size)]
    tail = "-".join(f"{key}={value}" for key, value in sorted(options.items()))
    prefix = f"rg-{dataset}-s{seed}" + (f"-{tail}" if tail else "")
    problems = [
        Problem(f"{prefix}/{i}", str(e["question"]), str(e["answer"]), metadata={"index": i})
        for i, e in enumerate(entries)
    ]

    def grade(problem: Problem, text: str) -> Grade:
        answer = _answer(text, problem.reference)
        entry = entries[problem.metadata["index"]]
        score = float(source.score_answer(answer=answer, entry=entry)) if answer is not None else 0.0
        return Grade(score >= 1.0, answer, "" if answer is not None else "no answer found")

    return Task(f"reasoning_gym:{dataset}", problems, grade, max_new_tokens=512)


def _answer(text: str, reference: str) -> str | None:
    found = boxed(text)
    if found is not None:
        return found
    if "<answer>" in text:
        return text.rsplit("<answer>", 1)[1].split("</answer>", 1)[0].strip()
    if last_number(reference) == reference.strip().lstrip("+"):
        return last_number(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else None
