"""One scheduler for all clients: jobs come in while others run, and each may be cancelled or given a budget.

The scheduler and its decoder live in one thread of their own; requests are handed to it and results handed back. What
a client hears are ``Progress``, ``Token`` and at last one ``Done`` for every job, through a function that is called in
the engine's thread and must return at once.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fastpower.chains.job import Finished, Job
from fastpower.errors import FastpowerError
from fastpower.language_model import LanguageModel
from fastpower.results import Result
from fastpower.samplers.baselines import LowTemperature, Plain, Watched
from fastpower.scheduler import Scheduler


class Busy(FastpowerError, RuntimeError):
    """More is waiting than the server wants to promise: try again later."""


@dataclass(frozen=True)
class Budget:
    """When to return the current state of a chain instead of going on. None: never."""

    moves: int | None = None  #: of the chain
    tokens: int | None = None  #: decoded, rejected ones included
    seconds: float | None = None  #: since the job was begun

    def spent(self, moves: int, tokens: int, seconds: float) -> str | None:
        """Which limit is reached, if any."""
        if self.moves is not None and moves >= self.moves:
            return "moves"
        if self.tokens is not None and tokens >= self.tokens:
            return "tokens"
        return "seconds" if self.seconds is not None and seconds >= self.seconds else None


@dataclass(frozen=True)
class Progress:
    """A chain has moved."""

    index: int  #: of the job within its request
    moves: int
    accepted: int
    decoded_tokens: int


@dataclass(frozen=True)
class Token:
    """A token that stays: samplers that draw once and keep it (``plain``, ``low_temperature``)."""

    index: int
    token: int
    logp: float


@dataclass(frozen=True)
class Done:
    """A job's end: its result, or the error that took its place."""

    index: int
    result: Result | None
    error: Exception | None = None
    stopped_by: str | None = None  #: the budget that ended it: "moves", "tokens" or "seconds"


Event = Progress | Token | Done
Sink = Callable[[Event], None]


@dataclass(eq=False)
class Request:
    """Jobs of one client, and who hears of them."""

    jobs: Sequence[Job]
    sink: Sink
    budget: Budget = Budget()
    progress: bool = False  #: whether ``Progress`` is wanted
    number: int = 0
    open: int = 0  #: jobs that have not ended
    cancelled: bool = False


@dataclass(eq=False, slots=True)
class _Entry:
    request: Request
    index: int
    job: Job
    begun: float | None = None
    moves: int = 0
    stopped_by: str | None = None


@dataclass
class Totals:
    """What the engine did since it was started; every figure only grows but ``running`` and ``waiting``."""

    requests: int = 0
    answers: int = 0
    failures: int = 0
    cancelled: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    kept_tokens: int = 0
    decoded_tokens: int = 0
    moves: int = 0
    accepted: int = 0
    running: int = 0
    waiting: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1024))  #: of the latest answers


class Engine:
    """Runs jobs of many requests on one model, continuously batched.

    Args:
        model: The language model; nothing else may decode with it while the engine runs.
        max_rows: Rows of one decode batch.
        max_waiting: Jobs that may wait for a row; a request that would exceed it is refused with ``Busy``.
    """

    def __init__(self, model: LanguageModel, *, max_rows: int = 64, max_waiting: int = 256) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1 job, got {max_waiting}")
        self.model = model
        self.max_waiting = max_waiting
        self.totals = Totals()
        self.scheduler = Scheduler(model.decoder, max_rows=max_rows, guess=model.guess, on_step=self._after_step)
        self._lock = threading.Condition()
        self._inbox: deque[_Entry] = deque()
        self._entries: dict[int, _Entry] = {}  # id(job) → entry, of jobs that the scheduler has taken
        self._to_end: list[_Entry] = []
        self.cache: dict[str, float] = dict(model.decoder.stats())  #: of the K/V cache, a step or a second old
        self._looked = 0.0  # when ``cache`` was read
        self._watched = 0  # entries with a budget or with progress: nothing is looked at while there are none
        self._numbers = itertools.count(1)
        self._closing = False
        self._thread: threading.Thread | None = None

    # -- called from any thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; again after ``close``, if need be.

        Raises:
            RuntimeError: It runs already.
        """
        if self.alive:
            raise RuntimeError("the engine runs already: close it first")
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fastpower-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are run."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, request: Request) -> Request:
        """Put a request's jobs in the queue.

        Raises:
            Busy: Too many jobs wait already, or the engine is closing; nothing was queued.
        """
        with self._lock:
            if self._closing or not self.alive:
                raise Busy("the server is shutting down")
            if len(self._inbox) + len(request.jobs) > self.max_waiting:
                self.totals.refused += 1
                raise Busy(
                    f"{len(self._inbox)} answers wait already and {len(request.jobs)} more were asked for; "
                    f"the server queues at most {self.max_waiting}"
                )
            request.number, request.open = next(self._numbers), len(request.jobs)
            self._inbox.extend(_Entry(request, i, job) for i, job in enumerate(request.jobs))
            self.totals.requests += 1
            self.totals.waiting = len(self._inbox)
            self._lock.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """End all jobs of a request that have not ended; its rows are free after the step under way."""
        with self._lock:
            if request.cancelled or not request.open:
                return
            request.cancelled = True
            dropped = [entry for entry in self._inbox if entry.request is request]
            self._inbox = deque(entry for entry in self._inbox if entry.request is not request)
            self._to_end += [entry for entry in self._entries.values() if entry.request is request]
            self.totals.cancelled += len(dropped)
            self.totals.waiting = len(self._inbox)
            request.open -= len(dropped)

    def retry_after(self) -> int:
        """Seconds after which a refused client may find room: half the latest answers' median time, at least 1."""
        latest = sorted(self.totals.seconds)
        return max(1, round(latest[len(latest) // 2] / 2)) if latest else 1

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more, finish what was taken; True if all was finished within ``timeout`` seconds."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.alive

    # -- the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                for finished in self.scheduler.run(self._source()):
                    self._deliver(finished)
                    del finished  # it holds K/V, and the next may be hours away
                return
            except Exception as error:  # a fault of the scheduler: whoever waits is told, and the next ones are served
                with self._lock:
                    broken, self._entries, self._watched = list(self._entries.values()), {}, 0
                    self._to_end = []
                for entry in broken:
                    self._done(entry, Done(entry.index, None, error))
                if self._closing:
                    return

    def _source(self) -> Iterator[Job | None]:
        """Jobs for the scheduler; None while nothing waits but something runs."""
        while True:
            with self._lock:
                while not self._inbox:
                    if self._closing:
                        return
                    if self._entries:
                        break
                    self.scheduler.give_back()
                    self.cache = dict(self.model.decoder.stats())
                    self._lock.wait()
                entry = self._inbox.popleft() if self._inbox else None
                if entry is not None:
                    entry.begun = time.perf_counter()
                    self._entries[id(entry.job)] = entry
                    self._watched += _watched(entry)
                self.totals.waiting, self.totals.running = len(self._inbox), len(self._entries)
            yield None if entry is None else entry.job

    def _after_step(self, scheduler: Scheduler) -> None:
        if self._to_end:
            with self._lock:
                ending, self._to_end = self._to_end, []
            for entry in ending:
                scheduler.end(entry.job)
        now = time.perf_counter()
        if now - self._looked > 1.0:
            self._looked, self.cache = now, dict(scheduler.decoder.stats())
        if not self._watched:
            return
        for live in list(scheduler.live):
            entry = self._entries[id(live.job)]
            if entry.begun is None or not _watched(entry):
                continue
            counts = live.chain.counts
            if entry.request.progress and counts.moves > entry.moves:
                entry.moves = counts.moves
                _tell(entry, Progress(entry.index, counts.moves, counts.accepted, counts.decoded_tokens))
            entry.stopped_by = entry.request.budget.spent(counts.moves, counts.decoded_tokens, now - entry.begun)
            if entry.stopped_by is not None and live.chain.partial is not None:
                scheduler.end(live.job)

    def _deliver(self, finished: Finished) -> None:
        with self._lock:
            entry = self._entries.pop(id(finished.job))
            self._watched -= _watched(entry)
        error, result = finished.error, None
        if error is None:
            try:
                result = Result.of(finished, self.model.text)
            except Exception as failure:  # a tokenizer that cannot decode: that answer's fault, nobody else's
                error = failure
        stopped = entry.stopped_by if result is not None and not result.complete else None
        self._done(entry, Done(entry.index, result, error, stopped))

    def _done(self, entry: _Entry, done: Done) -> None:
        totals = self.totals
        with self._lock:
            entry.request.open -= 1
            totals.running = len(self._entries)
            if entry.request.cancelled:
                totals.cancelled += 1
            elif done.result is None:
                totals.failures += 1
            else:
                totals.answers += 1
                totals.prompt_tokens += len(entry.job.tokens)
                totals.kept_tokens += len(done.result.token_ids)
                totals.decoded_tokens += done.result.decoded_tokens
                totals.moves += done.result.moves
                totals.accepted += done.result.accepted
                totals.seconds.append(done.result.seconds)
        _tell(entry, done)


def _watched(entry: _Entry) -> bool:
    return entry.request.progress or entry.request.budget != Budget()


def _tell(entry: _Entry, event: Event) -> None:
    if not entry.request.cancelled:
        entry.request.sink(event)


def tokens_as_they_come(job: Job, index: int, sink: Sink) -> Job:
    """The same job, telling ``sink`` every token as it is drawn, if its sampler draws once and keeps what it draws."""
    if not isinstance(job.sampler, Plain | LowTemperature):
        return job

    def watch(token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
        sink(Token(index, token, logp))
        return False

    return replace(job, sampler=Watched(job.sampler, watch))
