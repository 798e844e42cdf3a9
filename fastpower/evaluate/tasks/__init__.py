"""Tasks by name: ``load_task("math500", data=PATH)``, ``load_task("reasoning_gym:chain_sum", min_terms=2)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastpower.evaluate.tasks.arithmetic import arithmetic
from fastpower.evaluate.tasks.base import Problem, Task
from fastpower.evaluate.tasks.gpqa import gpqa
from fastpower.evaluate.tasks.humaneval import humaneval
from fastpower.evaluate.tasks.mathematics import aime, gsm8k, math500, math_mini
from fastpower.evaluate.tasks.reasoning_gym import reasoning_gym
from fastpower.suggestions import unknown

__all__ = ["Problem", "Task", "is_procedural", "load_task", "task_names"]

_TASKS: dict[str, Callable[..., Task]] = {
    "aime": aime,
    "arithmetic": arithmetic,
    "gpqa": gpqa,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "math500": math500,
    "math_mini": math_mini,
}


def task_names() -> list[str]:
    """Names that ``load_task`` knows; ``reasoning_gym:NAME`` stands for any of that package's data sets."""
    return [*sorted(_TASKS), "reasoning_gym:NAME"]


def is_procedural(name: str) -> bool:
    """Whether the task makes its problems itself, as many as its option ``size`` says."""
    return name.startswith("reasoning_gym:") or name == "arithmetic"


def load_task(name: str, **options: Any) -> Task:
    """The task ``name`` with its ``options`` (None means not given).

    Raises:
        ValueError: An unknown task or option; the nearest names are suggested.
        NoData: Its data are not there.
        BadLine: Its data are damaged.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if name.startswith("reasoning_gym:"):
        return reasoning_gym(name.partition(":")[2], **options)
    if name not in _TASKS:
        raise ValueError(unknown("task", name, task_names()))
    known = inspect.signature(_TASKS[name]).parameters
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of task {name!r}", option, known))
    return _TASKS[name](**options)
