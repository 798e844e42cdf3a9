"""Progress over many chains: moves, acceptance, tokens per second. A bar on a terminal, elsewhere lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fastpower.chains.job import Finished, Job
from fastpower.terminal import on_terminal

if TYPE_CHECKING:
    from fastpower.scheduler import Scheduler

SECONDS = 10.0  #: between two lines where there is no terminal


class Progress:
    """Shows itself on stderr, so that stdout stays clean for results.

    A bar on a terminal, and elsewhere (a file, a pipe) one line every ten seconds.
    """

    def __init__(self, jobs: Sequence[Job], description: str = "sampling") -> None:
        self._planned = [max(1, getattr(job.sampler, "planned_moves", 1)) for job in jobs]
        self._description = description
        self._finished_moves = 0
        self._accepted = self._moves = self._decoded = 0
        self._done, self._answers = 0, len(jobs)
        self._start = self._last = time.monotonic()
        self._bar: RichProgress | None = None
        if on_terminal():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(description, total=sum(self._planned), status="")
            self._bar.start()

    def update(self, scheduler: Scheduler) -> None:
        """Called after every decode step."""
        now = time.monotonic()
        if self._bar is None and now - self._last < SECONDS:
            return
        self._last, elapsed = now, now - self._start
        live = [item.chain.counts for item in scheduler.live]
        moves = self._moves + sum(counts.moves for counts in live)
        accepted = self._accepted + sum(counts.accepted for counts in live)
        decoded = self._decoded + sum(counts.decoded_tokens for counts in live)
        completed = self._finished_moves + sum(counts.moves for counts in live)
        status = [f"{self._done}/{self._answers} answers"]
        if moves:
            status.append(f"acceptance {accepted / moves:.2f}")
        status.append(f"{decoded} tokens")
        if elapsed > 0:
            status.append(f"{decoded / elapsed:.0f} tokens/s")
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, status=" · ".join(status))
        else:
            steps = f"{completed}/{sum(self._planned)}"
            print(self._description, steps, *status, f"{elapsed:.0f} s", sep=" · ", file=sys.stderr, flush=True)

    def finished(self, job: Finished) -> None:
        """Called when a chain is done; one that needed fewer moves than planned counts in full."""
        counts = job.chain.counts
        self._done += 1
        self._moves += counts.moves
        self._accepted += counts.accepted
        self._decoded += counts.decoded_tokens
        self._finished_moves += max(1, getattr(job.job.sampler, "planned_moves", 1))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
