"""Evaluation: tasks, graders, run folders that survive a kill, statistics and a report."""

from __future__ import annotations

from fastpower.evaluate.grading.graders import Grade
from fastpower.evaluate.rows import BadLine, read_rows
from fastpower.evaluate.runs import Run
from fastpower.evaluate.tasks import Problem, Task, load_task, task_names

__all__ = ["BadLine", "Grade", "Problem", "Run", "Task", "load_task", "read_rows", "task_names"]
