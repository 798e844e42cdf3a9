"""Chains under way: whose generator goes on next, what each has asked for, and what becomes of it.

A chain's generator runs until it waits. Its requests queue, oldest chain first; when the results it waits for are in,
it goes on, until it returns its outcome or raises. Nothing here knows of rows or memory.
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import Any

import numpy as np

from fastpower.chains.chain import Chain, Run, Ticket
from fastpower.chains.job import Finished, Job
from fastpower.chains.outcome import Outcome
from fastpower.chains.requests import Request, Response, Rollout, Score, Weigh, check
from fastpower.errors import Ended


class Live:
    """A chain under way: its generator, the tickets it waits for, and all that are not resolved."""

    __slots__ = ("awaited", "chain", "job", "many", "missing", "open", "order", "run", "since")

    def __init__(self, order: int, job: Job, chain: Chain, run: Run) -> None:
        self.order = order
        self.job = job
        self.chain = chain
        self.run = run
        self.awaited: list[Ticket] = []
        self.many = False
        self.missing = 0
        self.open: set[Ticket] = set()
        self.since = time.perf_counter()


class Running:
    """All chains of one scheduler and their requests."""

    def __init__(self) -> None:
        self.live: list[Live] = []
        self.ready: list[Live] = []  #: those whose results are in
        self.cancelled = False  #: set when a ticket is cancelled; whoever searches for such resets it
        self.exponents: tuple[float, ...] = ()  #: all that were ever asked for: every forward computes them
        self.exponent_array = np.zeros(0, np.float32)
        self.weighing: list[Ticket] = []  #: answers that a potential is to be asked about
        self._owner: dict[Chain, Live] = {}
        self._waiting: list[tuple[int, int, Ticket]] = []  # heap: oldest chain first, then order of asking
        self._finished: list[Finished] = []
        self._counter = itertools.count()

    def begin(self, job: Job, chain: Chain) -> None:
        """Take a chain in; ``advance`` starts it."""
        live = Live(next(self._counter), job, chain, job.sampler.run(chain))
        self.live.append(live)
        self._owner[chain] = live
        self.ready.append(live)

    def advance(self) -> None:
        """Resume every sampler whose results are in, until all of them wait for decoding."""
        while self.ready:
            live = self.ready.pop()
            error = next((t.error for t in live.awaited if t.error is not None), None)
            results = [t.result for t in live.awaited]
            value: Any = results if live.many else (results[0] if results else None)
            live.awaited = []
            try:
                request = live.run.throw(error) if error is not None else live.run.send(value)
                live.many = isinstance(request, list)
                items = request if live.many else [request]
                live.awaited = [r if isinstance(r, Ticket) else self.submit(live.chain, r) for r in items]
            except StopIteration as stop:
                self._finish(live, stop.value, None)
                continue
            except Exception as failure:
                self._finish(live, None, failure)
                continue
            live.missing = sum(not t.done for t in live.awaited)
            for ticket in live.awaited:
                ticket.awaited = True
            if live.missing == 0:
                self.ready.append(live)

    def resolve(self, ticket: Ticket, result: Response | None, error: Exception | None = None) -> None:
        """Deliver a result, or the error instead of it."""
        if ticket.cancelled:
            return
        ticket.result, ticket.error = result, error
        live = self._owner[ticket.chain]
        live.open.discard(ticket)
        if ticket.awaited:
            live.missing -= 1
            if live.missing == 0:
                self.ready.append(live)

    def head(self) -> tuple[int, Ticket] | None:
        """The request whose turn it is, and its chain's order."""
        while self._waiting:
            order, _, ticket = self._waiting[0]
            if not ticket.cancelled:
                return order, ticket
            heapq.heappop(self._waiting)
        return None

    def take(self) -> None:
        """Remove the head."""
        heapq.heappop(self._waiting)

    def waiting(self) -> int:
        """Requests nobody has taken yet."""
        return sum(not ticket.cancelled for _, _, ticket in self._waiting)

    def columns(self, request: Rollout | Score) -> list[int]:
        """The request's exponents among all of them."""
        return [self.exponents.index(e) for e in request.exponents]

    def finished(self) -> list[Finished]:
        """Chains that have ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def end(self, job: Job) -> None:
        """Finish a job's chain now, as far as it got."""
        for live in self.live:
            if live.job is job:
                outcome = live.chain.partial() if live.chain.partial is not None else None
                if live in self.ready:
                    self.ready.remove(live)
                self._finish(
                    live, outcome, None if outcome is not None else Ended("it was ended before it had a result")
                )
                return

    def abandon(self) -> list[Finished]:
        """Stop all chains: those that have an outcome nobody asked for, and those under way, as far as they got."""
        done = [finished for finished in self.finished() if finished.outcome is not None]
        partial = [(live, live.chain.partial) for live in self.live]
        left = done + [Finished(live.job, live.chain, now()) for live, now in partial if now is not None]
        for live in self.live:
            live.run.close()
            live.chain.partial = None
        self._waiting, self.ready, self.live, self.weighing = [], [], [], []
        self._owner.clear()
        return left

    def submit(self, chain: Chain, request: Request) -> Ticket:
        """Queue a request of a chain under way.

        Raises:
            ValueError: It cannot be carried out.
            PromptTooLong: It does not fit into the context.
        """
        ticket, live = Ticket(request, chain), self._owner[chain]
        if isinstance(request, Weigh):
            live.open.add(ticket)
            self.weighing.append(ticket)
            return ticket
        check(request, chain.max_length)
        live.open.add(ticket)
        heapq.heappush(self._waiting, (live.order, next(self._counter), ticket))
        missing = set(request.exponents) - set(self.exponents)
        if missing:
            self.exponents = (*self.exponents, *sorted(missing))
            self.exponent_array = np.array(self.exponents, np.float32)
        return ticket

    def _finish(self, live: Live, outcome: Outcome | None, error: Exception | None) -> None:
        for ticket in live.open:
            ticket.cancel()
        live.open.clear()
        live.run.close()
        live.chain.partial = None  # it holds the chain's record, and with it pages, in a cycle
        self.live.remove(live)
        del self._owner[live.chain]
        seconds = time.perf_counter() - live.since
        self._finished.append(Finished(live.job, live.chain, outcome, error, seconds))
