"""Run methods over a task into a run folder, and go on where a killed run stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpower.chains.job import Job
from fastpower.errors import NotWritten
from fastpower.evaluate.engine import Engine
from fastpower.evaluate.grading import Grade
from fastpower.evaluate.runs import Run, check_writable, read_records
from fastpower.evaluate.sandbox import SandboxUnavailable
from fastpower.evaluate.tasks import Problem, Task
from fastpower.models.prompts import Question
from fastpower.results.traces import RunLine
from fastpower.samplers.methods import Method
from fastpower.samplers.retarget import retargeted

if TYPE_CHECKING:
    from fastpower.chains.chain import Sampler


@dataclass(frozen=True)
class Evaluation:
    """What to run. Equal evaluations give equal records (on a decoder with batch-invariant logits).

    Attributes:
        task: Problems and their grader.
        methods: How to answer them.
        model: What names the model in the run's config.
        alpha: None takes the task's.
        max_new_tokens: None takes the task's.
        seed: Of every draw.
        chains: Answers per problem and method.
        limit: The first so many problems.
        shared: Settings for every method that has them.
        match_best_of_n: After the other methods, draw further plain answers until every problem's have cost as many
            tokens as the dearest method's (for best-of-N at equal compute; they are records of the method ``plain``).
        stop: Strings that end an answer.
    """

    task: Task
    methods: Sequence[Method]
    model: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    chains: int = 1
    limit: int | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    match_best_of_n: bool = False
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.chains < 1:
            raise ValueError(f"chains must be at least 1 per problem, got {self.chains}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"n must be at least 1 problem, got {self.limit}")
        if self.limit is not None and self.limit > len(self.task.problems):
            raise ValueError(
                f"n = {self.limit} problems are asked for, but task {self.task.name!r} has {len(self.task.problems)}; "
                "leave n out to take all"
            )
        if self.match_best_of_n and len([m for m in self.methods if m.name != "plain"]) == 0:
            raise ValueError("match_best_of_n needs a method other than plain to match")
        ids = [problem.id for problem in self.problems]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"task {self.task.name!r} has two problems with the id {twice!r}")
        self.samplers()

    @property
    def problems(self) -> Sequence[Problem]:
        return self.task.problems[: self.limit]

    def samplers(self) -> dict[str, Sampler]:
        """Sampler of every method label.

        Raises:
            ValueError: Settings that are wrong.
        """
        alpha = self.task.alpha if self.alpha is None else self.alpha
        horizon = self.task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        samplers = {method.label: method.sampler(alpha, horizon, self.shared) for method in self._all_methods()}
        return {label: retargeted(sampler, stop=tuple(self.stop)) for label, sampler in samplers.items()}

    def _all_methods(self) -> list[Method]:
        extra = [Method("plain")] if self.match_best_of_n and all(m.label != "plain" for m in self.methods) else []
        return [*self.methods, *extra]

    def config(self) -> dict[str, Any]:
        """Everything that decides the records, JSON-able."""
        samplers = self.samplers()
        target = next(iter(samplers.values())).target
        return {
            "task": self.task.name,
            "problems": len(self.problems),
            "problems_digest": _digest(self.problems),
            "methods": [{"label": label, "sampler": repr(sampler)} for label, sampler in samplers.items()],
            "model": dict(self.model),
            "alpha": target.alpha,
            "max_new_tokens": target.horizon,
            "seed": self.seed,
            "chains": self.chains,
            "match_best_of_n": self.match_best_of_n,
        }

    def extends(self, old: Mapping[str, Any]) -> bool:
        """Whether every answer that the settings ``old`` ask for is asked for here as well.

        That is so with more problems behind the same first ones, more methods, more chains, and nothing else changed.
        """
        new = self.config()
        more = ("problems", "problems_digest", "methods", "chains")
        if any(old.get(key) != new[key] for key in new if key not in more) or set(old) != set(new):
            return False
        methods = [method["label"] for method in new["methods"]]
        if self.match_best_of_n:
            return False  # what was asked for decides how many more plain answers there are
        return (
            old["problems"] <= new["problems"]
            and old["chains"] <= new["chains"]
            and old["problems_digest"] == _digest(self.problems[: old["problems"]])
            and all(method in new["methods"] for method in old["methods"])
            and len(set(methods)) == len(methods)
        )

    def job(self, label: str, sampler: Sampler, problem: Problem, chain: int) -> Job:
        raw = problem.question if problem.raw_prompt is None else problem.raw_prompt
        prompt = Question(problem.question, raw)
        return Job(sampler, prompt, self.seed, f"{self.task.name}/{problem.id}", chain, label)

    def plan(self) -> list[list[Job]]:
        """Jobs of the methods that were asked for, one list per method, problems in order, then chains."""
        samplers = self.samplers()
        return [
            [self.job(m.label, samplers[m.label], p, chain) for p in self.problems for chain in range(self.chains)]
            for m in self.methods
        ]


def _digest(problems: Sequence[Problem]) -> str:
    text = "\x00".join(f"{p.id}\x01{p.question}\x01{p.raw_prompt}\x01{p.reference}" for p in problems)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def evaluate(
    evaluation: Evaluation,
    engine: Engine,
    out: str | Path,
    *,
    on_record: Callable[[RunLine], None] | None = None,
    on_phase: Callable[[str, int, int], None] | None = None,
    graders: int = 2,
    together: bool = False,
    skip_bad_lines: bool = False,
) -> Path:
    """Draw and grade every answer that ``out`` does not hold yet; the folder is complete when this returns.

    A folder made with fewer problems, methods or chains is extended, and ends with the records that it would have if
    all had been asked for at once.

    Everything that can be checked without the model is checked first: the folder can be written, its settings are the
    same, the grader works.

    An answer that fails does not stop the others: the error is raised when they are finished, and the next call draws
    what is missing. A disk that takes no more ends the run at once; the next call goes on from there.

    Args:
        evaluation: What to run.
        engine: What draws the answers.
        out: The run folder.
        on_record: Told every new record.
        on_phase: Told (methods, answers to draw, answers already there).
        graders: Threads that grade.
        together: Hand all methods to the engine at once, for engines that load the model anew in every call. Otherwise
            they run one after the other, so that their wall clocks can be compared.
        skip_bad_lines: Set lines of ``out`` that are damaged aside and draw their answers again.

    Returns:
        ``out``.

    Raises:
        RunError: The folder cannot be used, or not with these settings.
        NotWritten: The disk takes no more.
    """
    out = Path(out)
    check_writable(out)
    evaluation.task.check()
    with Run(out, evaluation.config(), skip_bad_lines=skip_bad_lines, extends=evaluation.extends) as run:
        order = [job.id for jobs in evaluation.plan() for job in jobs]
        failure: Exception | None = None
        for jobs in _phases(evaluation, out, together):
            known = set(order)
            order += [job.id for job in jobs if job.id not in known]
            todo = [job for job in jobs if job.id not in run.done]
            if on_phase is not None:
                on_phase(", ".join(dict.fromkeys(job.method for job in jobs)), len(todo), len(jobs) - len(todo))
            try:
                _draw(evaluation, engine, todo, run, on_record, graders)
            except NotWritten:
                raise  # what cannot be kept need not be drawn
            except Exception as error:
                failure = failure or error
                if evaluation.match_best_of_n:
                    break  # what is still to be drawn depends on what failed
        if failure is not None:
            raise failure
        run.finalise(order)
    return out


def _phases(evaluation: Evaluation, out: Path, together: bool) -> Iterator[list[Job]]:
    """Lists of jobs, each to be finished before the next is asked for."""
    plan = evaluation.plan()
    yield from [[job for jobs in plan for job in jobs]] if together else plan
    if not evaluation.match_best_of_n:
        return
    sampler = evaluation.samplers()["plain"]
    problems = {f"{evaluation.task.name}/{p.id}": p for p in evaluation.problems}
    while True:
        records = read_records(out)
        chains = _missing_chains(records, list(problems))
        if not chains:
            return
        yield [evaluation.job("plain", sampler, problems[name], chain) for name, new in chains.items() for chain in new]


def _missing_chains(records: Sequence[RunLine], prompt_ids: Sequence[str]) -> dict[str, list[int]]:
    """Which plain chains to draw next so that each problem's cost as much as the dearest other method on it.

    A wave aims at the budget with the mean length so far. It is computed from whole earlier waves only, starting from
    nothing, so that a resumed run draws exactly what an uninterrupted one does.
    """
    missing = {}
    for name in prompt_ids:
        costs: dict[str, list[int]] = {}
        plain: dict[int, int] = {}
        for r in records:
            if r["prompt_id"] == name and r["method"] == "plain":
                plain[r["chain"]] = r["decoded_tokens"]
            elif r["prompt_id"] == name:
                costs.setdefault(r["method"], []).append(r["decoded_tokens"])
        budget = max((sum(c) / len(c) for c in costs.values()), default=0.0)
        have, spent, wave = 0, 0, 1
        while spent < budget or have == 0:
            new = range(have, have + wave)
            absent = [chain for chain in new if chain not in plain]
            if absent:
                missing[name] = absent
                break
            spent += sum(plain[chain] for chain in new)
            have += wave
            wave = max(1, min(256, round((budget - spent) * have / max(spent, 1))))
    return missing


def _draw(
    evaluation: Evaluation,
    engine: Engine,
    todo: Sequence[Job],
    run: Run,
    on_record: Callable[[RunLine], None] | None,
    graders: int,
) -> None:
    """Draw ``todo``; answers are graded beside the decoding and written by this thread."""
    if not todo:
        return
    problems = {f"{evaluation.task.name}/{p.id}": p for p in evaluation.problems}
    pending: list[Future[RunLine]] = []

    def write(wait: bool) -> None:
        for future in list(pending):
            if wait or future.done():
                pending.remove(future)
                record = future.result()
                run.append(record)
                if on_record is not None:
                    on_record(record)

    with ThreadPoolExecutor(graders, thread_name_prefix="grader") as pool:
        try:
            for job, result in engine(todo):
                pending.append(pool.submit(_graded, evaluation.task, problems[str(job.prompt_id)], job, result))
                write(wait=False)
        finally:
            write(wait=True)


def _graded(task: Task, problem: Problem, job: Job, result: RunLine) -> RunLine:
    try:
        grade = task.grade(problem, result["text"])
    except SandboxUnavailable:  # no answer can be graded any more: those that follow would all be wrong
        raise
    except Exception as error:  # an answer that its grader cannot stand is that answer's fault
        grade = Grade(False, None, f"the grader failed: {type(error).__name__}: {error}"[:200])
    return {
        **result,
        "id": job.id,
        "task": task.name,
        "problem": problem.id,
        "question": problem.question,
        "method": job.method,
        "reference": problem.reference,
        "answer": grade.answer,
        "correct": grade.correct,
        "note": grade.note,
    }
