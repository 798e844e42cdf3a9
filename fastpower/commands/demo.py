"""``make demo``: twelve small sums, the packaged model, four ways to draw an answer; everything printed is measured.

The problems are the first twelve of ``--task arithmetic`` (two numbers of one digit), problem i with seed i.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastpower.evaluate.tasks.base import Task
    from fastpower.language_model import LanguageModel
    from fastpower.results import Result

METHODS = ("plain", "low_temperature", "mh", "smc")
_NAMES = {
    "plain": "p",
    "low_temperature": "p^{:g} token by token",
    "mh": "p^{:g}, exact",
    "smc": "p^{:g}, particles",
}


class Row(NamedTuple):
    """What one method did on all problems."""

    method: str
    results: list[Result]  #: one a problem, in their order
    right: list[bool]
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastpower.commands.demo", description=__doc__)
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    args = parser.parse_args(argv)

    import fastpower
    from fastpower.evaluate.tasks.arithmetic import arithmetic

    print(
        "loading SmolLM2-135M-Instruct (the first start unpacks it, about half a minute)", file=sys.stderr, flush=True
    )
    model = fastpower.load()
    task = arithmetic(size=args.problems)
    print(
        f"{args.problems} problems like {task.problems[0].question!r}\n"
        f"problem i with seed i, alpha = {args.alpha:g}\n\n"
        f"{'method':<16} {'draws from':<22} {'right':>7} {'mean log p':>11} {'tokens':>7} {'seconds':>8}"
    )
    rows = []
    for method in METHODS:
        rows.append(_run(model, task, method, args.alpha, args.max_new_tokens))
        print(_line(rows[-1], args.alpha), flush=True)
    print(
        "\nlog p is the answer's under the model itself; tokens are those decoded for all answers, thrown away ones\n"
        "included. Problem 0 in full:\n"
    )
    print(f"  question          {task.problems[0].question}")
    for row in rows:
        result = row.results[0]
        verdict = "right" if row.right[0] else "wrong"
        print(f"  {row.method:<17} {result.text.strip()!r}  (log p = {result.logp:.2f}, {verdict})")
    return 0


def _run(model: LanguageModel, task: Task, method: str, alpha: float, horizon: int) -> Row:
    """All problems at once, each with its own seed."""
    from fastpower.chains.job import Job
    from fastpower.generation import run_jobs
    from fastpower.samplers import make_sampler

    settings: dict[str, Any] = {"mh": {"block": 4, "moves": 10}, "smc": {"particles": 16}}.get(method, {})
    sampler = make_sampler(method, alpha=alpha, max_new_tokens=horizon, **settings)
    jobs = [Job(sampler, model.tokens(p.question), seed, p.id) for seed, p in enumerate(task.problems)]
    begin = time.perf_counter()
    found = {job.prompt_id: result for job, result in run_jobs(model, jobs, progress=True)}
    seconds = time.perf_counter() - begin
    results = [found[problem.id] for problem in task.problems]
    right = [task.grade(p, result.text).correct for p, result in zip(task.problems, results, strict=True)]
    return Row(method, results, right, seconds)


def _line(row: Row, alpha: float) -> str:
    right, tokens = f"{sum(row.right)}/{len(row.right)}", sum(result.decoded_tokens for result in row.results)
    logp = sum(result.logp for result in row.results) / len(row.results)
    law = _NAMES[row.method].format(alpha)
    return f"{row.method:<16} {law:<22} {right:>7} {logp:>11.2f} {tokens:>7} {row.seconds:>8.1f}"


if __name__ == "__main__":
    sys.exit(main())
