"""How the jobs of an evaluation become records: here, or anywhere that keeps the same promise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpower.chains.job import Job
    from fastpower.language_model import LanguageModel
    from fastpower.scheduler import Scheduler

#: Turns jobs into records (``Result.to_dict()`` and ``finished``) in the order in which they finish.
Engine = Callable[[Sequence["Job"]], Iterable[tuple["Job", dict[str, Any]]]]


def local_engine(
    load: Callable[[], LanguageModel],
    *,
    max_rows: int = 64,
    progress: bool | Callable[[Scheduler], None] = False,
) -> Engine:
    """Runs jobs in this process. ``load`` is called when the first is asked for."""
    loaded: list[LanguageModel] = []

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        if not loaded:
            loaded.append(load())
        yield from records(loaded[0], jobs, max_rows=max_rows, progress=progress)

    return run


def records(
    model: LanguageModel, jobs: Sequence[Job], *, fixed_length: bool = False, **options: Any
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Jobs as they were given, and their records as they finish.

    Whatever ``prepare`` raises comes before anything is computed, what ``run_jobs`` raises at the end.

    Args:
        model: What runs them.
        jobs: What to draw; in any form that ``prepare`` takes.
        fixed_length: Allow a model without end-of-sequence token.
        **options: Of ``fastpower.generation.run_jobs``.
    """
    from fastpower.generation import prepare, run_jobs

    given = {}
    for job in jobs:
        ready = prepare(model, job, fixed_length=fixed_length)
        given[id(ready)] = (ready, job)  # the reference keeps the id from being given to another
    for ready, result in run_jobs(model, [ready for ready, _ in given.values()], **options):
        yield given[id(ready)][1], result.to_dict() | {"finished": time.time()}
