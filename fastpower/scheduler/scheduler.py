"""Runs samplers by the hundred and turns their requests into full decode batches.

A *lane* is one row of the decode batch: a sequence, and the rollouts ("members") that so far agree with every token of
it. Rollouts that start from the same place share a lane: one forward, one keyed draw per member; when their tokens
differ the lane splits by forking. Nothing is in lock-step: whenever a rollout ends, its sampler goes on at once and
the next step already carries its new request.

When the cache is full, K/V that only idle branches hold is dropped first (least recently used first), then the
youngest lane is parked; both are recomputed from their tokens when needed. Samplers never notice.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fastpower.chains.chain import Chain
from fastpower.chains.job import Finished, Job
from fastpower.chains.requests import Pool, Rollout, Score, Weigh
from fastpower.decoders.base import Decoder
from fastpower.errors import CacheFull
from fastpower.scheduler.batch import Batch
from fastpower.scheduler.delivery import Delivery
from fastpower.scheduler.guesses import Guesser, Guesses
from fastpower.scheduler.lanes import Lane, Member
from fastpower.scheduler.pooling import Pooling, pool_together
from fastpower.scheduler.port import SchedulerPort
from fastpower.scheduler.residence import Residence
from fastpower.scheduler.running import Live, Running
from fastpower.scheduler.scoring import Scoring, score_together
from fastpower.scheduler.turns import Turns
from fastpower.scheduler.weighing import Weighing

#: Up to so many rows a step costs little more than with one, because it waits for the weights (docs/results.md).
_CHEAP_ROWS = 8
_END = object()  # no job is left, nor will be


@dataclass(slots=True)
class Totals:
    """What the scheduler did so far."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0  #: tokens fed, prefill included
    draws: int = 0
    parkings: int = 0
    scorings: int = 0  #: forwards that evaluated given tokens, counted in rows and tokens but not in steps

    def add(self, rows: int, tokens: int, draws: int) -> None:
        """Book a forward."""
        self.rows += rows
        self.tokens += tokens
        self.draws += draws


class Scheduler:
    """Drives samplers over one decoder.

    Three switches turn lossless acceleration off, to compare and to test; records do not depend on them (on a decoder
    that is batch-invariant).

    Args:
        decoder: What runs the steps.
        max_rows: Rows of one forward.
        max_chains: Samplers alive at once (default max_rows).
        prefill_tokens: Tokens beyond one per row that a step may feed, so that a long prompt is fed in chunks beside
            running decodes.
        share_lanes: False: a row for every rollout.
        resume: False: every rollout begins with an empty cache and is fed its whole prefix.
        lock_step: True: chains wait for each other: rollouts are admitted only when those before them have all ended,
            chains only when all before them have finished.
        guess: Tokens fed behind a rollout's last one and verified in the same forward, in rows that would be idle.
            "auto" looks up what was seen before where the decoder is batch-invariant; 0 is none; n is at most n a row,
            and a function is a ``Guesser``, on any decoder that has ``verify``. Lossless like the switches.
        on_step: Called with the scheduler after every step.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_rows: int = 64,
        max_chains: int | None = None,
        prefill_tokens: int = 512,
        share_lanes: bool = True,
        resume: bool = True,
        lock_step: bool = False,
        guess: str | int | Guesser = "auto",
        on_step: Callable[[Scheduler], None] | None = None,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_chains", max_chains), ("prefill_tokens", prefill_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._guesses = Guesses(decoder, guess, max_rows)
        self.decoder = decoder
        self.max_rows = max_rows
        self.max_chains = max_chains or max_rows
        self.prefill_tokens = prefill_tokens
        self.share_lanes = share_lanes
        self.lock_step = lock_step
        self.on_step = on_step
        self.residence = Residence(decoder, resume=resume)
        self.totals = Totals()
        self.unfinished: list[Finished] = []
        self._turns = Turns.of(decoder)
        self._starved = False  # the cache is full of what other threads' runs hold
        self._running = Running()
        self._weighing = Weighing(decoder, self._running)
        self._port = SchedulerPort(decoder, self._running, self._idle_rows)
        self._lanes: list[Lane] = []
        self._parked: list[Lane] = []
        self._counter = itertools.count()
        self._delivery = Delivery(decoder, self.residence, self._running, self._guesses, self._counter)
        self._pressed = False  # memory ran out: admit nothing until something is given back
        self._exhausted = False  # no job is there to begin

    @property
    def live(self) -> list[Live]:
        """The chains under way."""
        return self._running.live

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Finished]:
        """Run all jobs, yielding each as it finishes (in order of finishing).

        Jobs are taken lazily; None among them says that none is there now but more may come, and is asked again after
        the next step.

        Closing the iterator, or an exception such as Ctrl-C, stops everything; ``unfinished`` then holds what was not
        yielded any more: chains that were under way, as far as they got.
        """
        queue = iter(jobs)
        self._exhausted = ended = False
        self.residence.running = True
        turn = contextlib.ExitStack()
        turn.enter_context(self._turns.run())
        with self._turns.lock:
            refresh = getattr(self.decoder, "refresh", None)
            if refresh is not None and self._turns.alone():
                refresh()  # what was remembered of other weights is forgotten
        try:
            while True:
                joining = not ended and not (self.lock_step and self.live)
                while joining and len(self.live) < self.max_chains and len(self._lanes) < self.max_rows:
                    job = next(queue, _END)  # which may wait: it is nobody's turn meanwhile
                    ended = job is _END
                    self._exhausted = ended or job is None
                    joining = not self._exhausted
                    if isinstance(job, Job):
                        with self._turns.lock:
                            self._begin(job)
                            self._weighing.advance()
                yield from self._running.finished()
                if not self.live:
                    if ended:
                        return
                    continue
                with self._turns.lock:
                    self._step()
                    self._weighing.advance()
                    if self.on_step is not None:
                        self.on_step(self)
                if self._starved:
                    self._turns.wait()
                yield from self._running.finished()
        finally:
            with self._turns.lock:
                self._abandon()
            turn.close()

    def end(self, job: Job) -> None:
        """End a job between two steps (from ``on_step``): it finishes as far as it got.

        Its ``complete`` is False, or ``Ended`` its error if it has nothing to return. Others go on; nothing happens if
        it has ended.
        """
        self._running.end(job)

    def give_back(self) -> None:
        """Free at once what finished chains held, as the next step would: for when there may be none for long."""
        with self._turns.lock:
            self.residence.flush()

    def _begin(self, job: Job) -> None:
        root = self.residence.root(job.tokens)
        chain = Chain(job.sampler, root, job.seed, job.prompt_id, job.chain, self._port)
        self._running.begin(job, chain)

    def _abandon(self) -> None:
        for lane in (*self._lanes, *self._parked):
            self.residence.drop(lane)
        self.unfinished = self._running.abandon()
        self._lanes, self._parked = [], []
        self._delivery.open.clear()
        self.residence.flush()
        self.residence.running = False

    # -- requests ----------------------------------------------------------------------------------------------

    def _idle_rows(self, tokens: int) -> int:
        """See ``Chain.idle_rows``. Chains about to go on or still to begin come first: each has a row kept for it."""
        busy = len(self._running.ready) if self._exhausted else self.max_chains
        spare = min(_CHEAP_ROWS, self.max_rows) - busy
        if spare <= 0 or self._pressed or self._parked or self.lock_step:
            return 0
        self._forget_cancelled()
        busy += len(self._lanes) + self._running.waiting() + self._guesses.reserved(self.live)
        spare = min(_CHEAP_ROWS, self.max_rows) - busy
        return max(0, min(spare, self.decoder.stats()["free_tokens"] // tokens - busy)) if spare > 0 else 0

    def _forget_cancelled(self) -> None:
        if self._running.cancelled:
            self._running.cancelled = False
            self._lanes = [lane for lane in self._lanes if self._prune(lane)]
            self._parked = [lane for lane in self._parked if self._prune(lane)]

    def _admit(self) -> None:
        """Turn waiting requests into lanes; parked lanes (they are older work) come back first."""
        if self._pressed and self._lanes:
            return
        self._pressed = False
        while self._parked and len(self._lanes) < self.max_rows:
            self._lanes.append(self._parked.pop(0))
        if self.lock_step and self._lanes:
            return
        scores: list[Scoring] = []
        pools: list[Pooling] = []
        running = self._running
        while (head := running.head()) is not None:
            order, ticket = head
            request = ticket.request
            assert not isinstance(request, Weigh)  # those wait for no row
            if isinstance(request, Pool):
                if pools and sum(map(_width, pools)) + len(request.parents) > self.max_rows:
                    break
                running.take()
                pools.append(Pooling(ticket, request, self._counter))
                continue
            key = (id(request.parent), request.length)
            lane = self._delivery.open.get(key) if self.share_lanes and isinstance(request, Rollout) else None
            if lane is None and len(self._lanes) + len(scores) >= self.max_rows:
                break
            running.take()
            if isinstance(request, Score):
                scores.append(Scoring(ticket, request, running.columns(request), next(self._counter)))
                continue
            columns = None if request.exponents == running.exponents else running.columns(request)
            member = Member(ticket, request, columns)
            if lane is not None and lane.alpha == request.alpha:
                lane.members.append(member)
                continue
            lane = Lane(order, next(self._counter), request.parent, request.length, request.alpha, member)
            self._lanes.append(lane)
            if self.share_lanes:
                self._delivery.open[key] = lane
        if scores:
            self._score(scores)
        if pools:
            self._pool(pools)

    # -- memory ----------------------------------------------------------------------------------------------------

    def _make_room(self, spared: int) -> bool:
        """After CacheFull: drop what is idle, else park the youngest lane if more than ``spared`` are left."""
        if self.residence.evict():
            return True
        if len(self._lanes) <= spared:
            return False
        lane = max(self._lanes, key=_rank)
        self._lanes.remove(lane)
        self.residence.park(lane)
        self._parked.append(lane)
        self._parked.sort(key=_rank)
        self._pressed = True
        self.totals.parkings += 1
        return True

    def _score(self, group: list[Scoring]) -> None:
        """Scores are single forwards of their own, at once: those that wait share one."""
        make_room = functools.partial(self._make_room, 0)
        results = score_together(group, self.decoder, self.residence, self._running.exponent_array, make_room)
        self.totals.scorings += 1
        for scoring, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                self._running.resolve(scoring.ticket, None, result)
                continue
            counts = scoring.ticket.chain.counts
            counts.forwards += 1
            counts.prefill_tokens += scoring.fed - 1
            self.totals.add(1, scoring.fed, 0)
            self._running.resolve(scoring.ticket, result)

    def _pool(self, group: list[Pooling]) -> None:
        """As ``_score``: tokens that several rows decode together."""
        results = pool_together(group, self.decoder, self.residence, functools.partial(self._make_room, 0))
        self.totals.scorings += 1
        for pooling, result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                self._running.resolve(pooling.ticket, None, result)
                continue
            rows, counts = len(pooling.lanes), pooling.ticket.chain.counts
            counts.decoded_tokens += rows
            counts.forwards += rows
            counts.prefill_tokens += pooling.fed - rows
            self.totals.add(rows, pooling.fed, 1)
            self._running.resolve(pooling.ticket, result)

    # -- one decode step ---------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._starved = False
        if self.residence.flush():
            self._pressed = False
        self._forget_cancelled()
        self._admit()
        if self._guesses.on:
            self._plan_guesses()
        while self._lanes:
            try:
                batch = Batch(self._lanes[: self.max_rows], self.residence, self.prefill_tokens)
                out = batch.forward(self.decoder, self._running.exponent_array)
                break
            except CacheFull as full:
                if any(lane.guess for lane in self._lanes):  # guesses are the first to go
                    for lane in self._lanes:
                        lane.guess = []
                    continue
                if self._make_room(1):
                    continue
                self._starved = not self._turns.alone() and self._turns.wait(0.0)
                if self._starved:
                    return
                [lane] = self._lanes
                self._lanes = []
                self._delivery.close(lane)
                self._delivery.fail(lane, full)
                return
        else:
            return
        self.totals.steps += 1
        self.totals.add(len(batch.lanes), batch.tokens, len(batch.rows))
        survivors = self._delivery.hand_out(batch, out)
        self._pressed = self._pressed and not self._delivery.gave_back
        self._lanes = survivors + self._lanes[len(batch.lanes) :]
        self._lanes.sort(key=_rank)

    def _prune(self, lane: Lane) -> bool:
        """Forget cancelled members; False (and the lane is dropped) if nobody is left."""
        if any(member.ticket.cancelled for member in lane.members):
            lane.members = [member for member in lane.members if not member.ticket.cancelled]
            if not lane.members:
                self._delivery.close(lane)
                self.residence.drop(lane)
                self._pressed = False
                return False
        return True

    def _plan_guesses(self) -> None:
        lanes = [] if self._pressed or self._parked else self._lanes
        for lane, error in self._guesses.plan(lanes):
            self._lanes.remove(lane)
            self._delivery.close(lane)
            self._delivery.fail(lane, error)


def _width(pooling: Pooling) -> int:
    return len(pooling.lanes)


_rank = operator.attrgetter("rank")
