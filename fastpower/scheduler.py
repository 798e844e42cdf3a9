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
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastpower.chain import Chain
from fastpower.decoders.base import Decoder, Draws, TokenDraws, Work
from fastpower.errors import CacheFull, InvalidLogits
from fastpower.jobs import Finished, Job, Live, Totals
from fastpower.lanes import Lane, Member
from fastpower.outcome import Outcome
from fastpower.requests import Branch, Request, Response, Rollout, Score, Scored, Ticket, check
from fastpower.residence import Residence

# Bits of fastpower.kernels.Status; written out so that the hot loop compares integers.
_BAD_ROW, _EXHAUSTED = 1 | 2, 4


class Scheduler:
    """Drives samplers over one decoder.

    max_rows: rows of one forward. max_chains: samplers alive at once (default max_rows). prefill_tokens: tokens beyond
    one per row that a step may feed, so that a long prompt is fed in chunks beside running decodes.

    Three switches turn lossless acceleration off, to compare and to test; records do not depend on them (on a decoder
    that is batch-invariant). share_lanes=False: a row for every rollout. resume=False: every rollout begins with an
    empty cache and is fed its whole prefix. lock_step=True: chains wait for each other: rollouts are admitted only when
    those before them have all ended, chains only when all before them have finished.
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
        on_step: Callable[[Scheduler], None] | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        if max_chains is not None and max_chains < 1:
            raise ValueError(f"max_chains must be at least 1, got {max_chains}")
        if prefill_tokens < 1:
            raise ValueError(f"prefill_tokens must be at least 1, got {prefill_tokens}")
        self.decoder = decoder
        self.max_rows = max_rows
        self.max_chains = max_chains or max_rows
        self.prefill_tokens = prefill_tokens
        self.share_lanes = share_lanes
        self.lock_step = lock_step
        self.on_step = on_step
        self.residence = Residence(decoder, resume=resume)
        self.totals = Totals()
        self.live: list[Live] = []
        self.unfinished: list[Finished] = []
        self._lanes: list[Lane] = []
        self._parked: list[Lane] = []
        self._waiting: list[tuple[int, int, Ticket]] = []  # heap: oldest chain first, then order of asking
        self._ready: list[Live] = []
        self._owner: dict[Chain, Live] = {}
        self._open: dict[tuple[int, int], Lane] = {}  # (id of parent, length) → lane that has not drawn yet
        self._counter = itertools.count()
        self._exponents: tuple[float, ...] = ()
        self._exponent_array = np.zeros(0, np.float32)
        self._pressed = False  # memory ran out: admit nothing until something is given back
        self._finished: list[Finished] = []

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, jobs: Iterable[Job]) -> Iterator[Finished]:
        """Run all jobs, yielding each as it finishes (in order of finishing). Jobs are taken lazily.

        Closing the iterator, or an exception such as Ctrl-C, stops everything; ``unfinished`` then holds what was not
        yielded any more: chains that were under way, as far as they got.
        """
        queue = iter(jobs)
        exhausted = False
        try:
            while True:
                joining = not (self.lock_step and self.live)
                while (
                    joining and not exhausted and len(self.live) < self.max_chains and len(self._lanes) < self.max_rows
                ):
                    job = next(queue, None)
                    if job is None:
                        exhausted = True
                    else:
                        self._begin(job)
                        self._advance()
                yield from self._take_finished()
                if not self.live:
                    if exhausted:
                        return
                    continue
                self._step()
                self._advance()
                if self.on_step is not None:
                    self.on_step(self)
                yield from self._take_finished()
        finally:
            self._abandon()

    def _take_finished(self) -> list[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def _begin(self, job: Job) -> None:
        chain = Chain(job.sampler, self.residence.root(job.prompt), job.seed, job.prompt_id, job.chain)
        chain.eos_ids = self.decoder.eos_ids
        chain.max_length = self.decoder.max_length
        chain.vocab_size = self.decoder.vocab_size
        chain._submit = self._submit
        live = Live(next(self._counter), job, chain, job.sampler.run(chain))
        self.live.append(live)
        self._owner[chain] = live
        self._ready.append(live)

    def _advance(self) -> None:
        """Resume every sampler whose results are in, until all of them wait for decoding."""
        while self._ready:
            live = self._ready.pop()
            error = next((t.error for t in live.awaited if t.error is not None), None)
            results = [t.result for t in live.awaited]
            value: Any = results if live.many else (results[0] if results else None)
            live.awaited = []
            try:
                request = live.run.throw(error) if error is not None else live.run.send(value)
                live.many = isinstance(request, list)
                items = request if live.many else [request]
                live.awaited = [r if isinstance(r, Ticket) else self._submit(live.chain, r) for r in items]
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
                self._ready.append(live)

    def _finish(self, live: Live, outcome: Outcome | None, error: Exception | None) -> None:
        for lane in (*self._lanes, *self._parked):
            for member in lane.members:
                if member.chain is live.chain:
                    member.ticket.cancel()
        for _, _, ticket in self._waiting:
            if ticket.chain is live.chain:
                ticket.cancel()
        live.run.close()
        live.chain.partial = None  # it holds the chain's record, and with it pages, in a cycle
        self.live.remove(live)
        del self._owner[live.chain]
        seconds = time.perf_counter() - live.since
        self._finished.append(Finished(live.job, live.chain, outcome, error, seconds))

    def _abandon(self) -> None:
        done = [finished for finished in self._take_finished() if finished.outcome is not None]
        partial = [(live, live.chain.partial) for live in self.live]
        self.unfinished = done + [Finished(live.job, live.chain, now()) for live, now in partial if now is not None]
        for lane in (*self._lanes, *self._parked):
            self.residence.drop(lane)
        for live in self.live:
            live.run.close()
            live.chain.partial = None
        self._lanes, self._parked, self._waiting, self._ready, self.live = [], [], [], [], []
        self._owner.clear()
        self._open.clear()
        self.residence.flush()

    # -- requests ----------------------------------------------------------------------------------------------

    def _submit(self, chain: Chain, request: Request) -> Ticket:
        check(request, chain.max_length)
        ticket = Ticket(request, chain)
        heapq.heappush(self._waiting, (self._owner[chain].order, next(self._counter), ticket))
        missing = set(request.exponents) - set(self._exponents)
        if missing:
            self._exponents = (*self._exponents, *sorted(missing))
            self._exponent_array = np.array(self._exponents, np.float32)
        return ticket

    def _resolve(self, ticket: Ticket, result: Response | None, error: Exception | None = None) -> None:
        if ticket.cancelled:
            return
        ticket.result, ticket.error = result, error
        if ticket.awaited:
            live = self._owner[ticket.chain]
            live.missing -= 1
            if live.missing == 0:
                self._ready.append(live)

    def _admit(self) -> None:
        """Turn waiting requests into lanes; parked lanes (they are older work) come back first."""
        if self._pressed and self._lanes:
            return
        self._pressed = False
        while self._parked and len(self._lanes) < self.max_rows:
            self._lanes.append(self._parked.pop(0))
        if self.lock_step and self._lanes:
            return
        while self._waiting:
            order, _, ticket = self._waiting[0]
            if ticket.cancelled:
                heapq.heappop(self._waiting)
                continue
            request = ticket.request
            key = (id(request.parent), request.length)
            lane = self._open.get(key) if self.share_lanes and isinstance(request, Rollout) else None
            if lane is None and len(self._lanes) >= self.max_rows:
                return
            heapq.heappop(self._waiting)
            if isinstance(request, Score):
                self._score(ticket, request)
                continue
            exponents = None
            if request.exponents != self._exponents:
                exponents = [self._exponents.index(e) for e in request.exponents]
            member = Member(ticket, request, exponents)
            if lane is not None and lane.alpha == request.alpha:
                lane.members.append(member)
                continue
            lane = Lane(order, next(self._counter), request.parent, request.length, request.alpha, member)
            self._lanes.append(lane)
            if self.share_lanes:
                self._open[key] = lane

    # -- memory ----------------------------------------------------------------------------------------------------

    def _park_youngest(self) -> None:
        lane = max(self._lanes, key=lambda lane: (lane.order, lane.age))
        self._lanes.remove(lane)
        self.residence.park(lane)
        self._parked.append(lane)
        self._parked.sort(key=lambda lane: (lane.order, lane.age))
        self._pressed = True
        self.totals.parkings += 1

    def _score(self, ticket: Ticket, request: Score) -> None:
        """Scores are single forwards: they run on their own, at once."""
        lane = Lane(0, next(self._counter), request.parent, request.length, 1.0, None)
        keep = request.length - 1  # the token before the first scored one is fed again, to get its row
        tokens = [*lane.tokens, *request.tokens]
        while True:
            try:
                if lane.sequence is None:
                    self.residence.materialise(lane)
                assert lane.sequence is not None
                lane.fed = min(lane.fed, keep)
                self.decoder.truncate(lane.sequence, lane.fed)
                [scores] = self.decoder.score([Work(lane.sequence, tokens[lane.fed :])], self._exponent_array)
                break
            except CacheFull as full:
                if self.residence.evict():
                    continue
                if self._lanes:
                    self._park_youngest()
                    continue
                self.residence.drop(lane)
                self._resolve(ticket, None, full)
                return
            except InvalidLogits as invalid:
                self.residence.drop(lane)
                self._resolve(ticket, None, invalid)
                return
        columns = [self._exponents.index(e) for e in request.exponents]
        first = keep - lane.fed
        fed_before, lane.fed = lane.fed, len(tokens)
        branch = self.residence.branch(lane, tokens)
        self.residence.drop(lane)
        counts = ticket.chain.counts
        counts.forwards += 1
        counts.prefill_tokens += len(tokens) - fed_before - 1
        self.totals.rows += 1
        self.totals.tokens += len(tokens) - fed_before
        n = len(request.tokens)
        self._resolve(
            ticket,
            Scored(
                scores.logp[first : first + n].astype(np.float64),
                scores.logz[first : first + n, columns].astype(np.float64),
                scores.entropy[first : first + n].astype(np.float64),
                branch,
            ),
        )

    # -- one decode step ---------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self.residence.flush():
            self._pressed = False
        self._lanes = [lane for lane in self._lanes if self._prune(lane)]
        self._parked = [lane for lane in self._parked if self._prune(lane)]
        self._admit()
        while self._lanes:
            batch = self._lanes[: self.max_rows]
            work: list[Work] = []
            try:
                budget = self.prefill_tokens
                ready: list[Lane] = []
                for lane in batch:
                    if lane.sequence is None:
                        self.residence.materialise(lane)
                    pending = len(lane.tokens) - lane.fed
                    take = min(pending, 1 + budget)
                    budget -= take - 1
                    assert lane.sequence is not None
                    work.append(Work(lane.sequence, lane.tokens[lane.fed : lane.fed + take]))
                    ready.append(lane)
                results = self._forward(ready, work)
            except CacheFull as full:
                if self.residence.evict():
                    continue
                if len(self._lanes) > 1:
                    self._park_youngest()
                    continue
                [lane] = self._lanes
                self._lanes = []
                self._close(lane)
                self.residence.drop(lane)
                for member in lane.members:
                    self._resolve(member.ticket, None, full)
                return
            survivors: list[Lane] = []
            for i, (lane, item) in enumerate(zip(ready, work, strict=True)):
                self._deliver(lane, i, len(item.tokens), results, survivors)
            self._lanes = survivors + self._lanes[len(batch) :]
            self._lanes.sort(key=_age)
            return

    def _prune(self, lane: Lane) -> bool:
        """Forget cancelled members; False (and the lane is dropped) if nobody is left."""
        if any(member.ticket.cancelled for member in lane.members):
            lane.members = [member for member in lane.members if not member.ticket.cancelled]
            if not lane.members:
                self._close(lane)
                self.residence.drop(lane)
                self._pressed = False
                return False
        return True

    def _close(self, lane: Lane) -> None:
        """The lane is about to draw, or gone: nobody can join it any more."""
        if lane.open:
            lane.open = False
            if self._open.get(lane.start) is lane:
                del self._open[lane.start]

    def _forward(self, lanes: list[Lane], work: list[Work]) -> tuple[TokenDraws, list[int]]:
        rows: list[int] = []
        keys: list[int] = []
        positions: list[int] = []
        exclude: list[int] = []
        firsts: list[int] = []
        for i, (lane, item) in enumerate(zip(lanes, work, strict=True)):
            firsts.append(len(rows))
            if lane.fed + len(item.tokens) < len(lane.tokens):
                continue  # a prefill chunk that is not the last
            position = len(lane.tokens)
            for member in lane.members:
                if member.draws_next:
                    rows.append(i)
                    keys.append(member.request.key)
                    positions.append(position)
                    exclude.append(member.request.exclude if not member.tokens else -1)
        draws = Draws(
            np.array([lane.alpha for lane in lanes], np.float32),
            self._exponent_array,
            np.array(rows, np.int64),
            np.array(keys, np.uint64),
            np.array(positions, np.int64),
            np.array(exclude, np.int64),
        )
        out = self.decoder.forward(work, draws)
        totals = self.totals
        totals.steps += 1
        totals.rows += len(work)
        totals.tokens += sum(len(item.tokens) for item in work)
        totals.draws += len(rows)
        return (
            TokenDraws(
                out.token.tolist(), out.logp.tolist(), out.logz.tolist(), out.entropy.tolist(), out.status.tolist()
            ),
            firsts,
        )

    def _deliver(
        self, lane: Lane, row: int, fed: int, results: tuple[TokenDraws, list[int]], survivors: list[Lane]
    ) -> None:
        """Hand a row's results to the lane's members, finish those that are done, split the rest by token."""
        out, firsts = results
        lane.fed += fed
        share = 1.0 / len(lane.members)
        for member in lane.members:
            counts = member.chain.counts
            counts.forwards += share
            counts.prefill_tokens += share * (fed - 1)
            counts.shared_rows += 1.0 - share
            counts.shared_prefill_tokens += (1.0 - share) * (fed - 1)
        if lane.fed < len(lane.tokens):
            survivors.append(lane)
            return
        if lane.open:
            self._close(lane)
            self.residence.share(lane)
            for member in lane.members:
                member.chain.counts.resumed_tokens += share * lane.resumed
        status: int = out.status[row]
        if status & _BAD_ROW:
            what = "NaN or +inf" if status & 1 else "no finite entry"
            error = InvalidLogits(
                f"the logits at position {len(lane.tokens)} hold {what}; check the model's weights and dtype"
            )
            self.residence.drop(lane)
            for member in lane.members:
                self._resolve(member.ticket, None, error)
            return
        logz: list[float] = out.logz[row]
        entropy: float = out.entropy[row]
        draw = firsts[row]
        groups: dict[int, list[Member]] = {}
        done: list[tuple[Member, int]] = []
        for member in lane.members:
            if member.peeking:
                member.next_logz, member.next_entropy = logz, entropy
                done.append((member, -1))
                continue
            if not member.draws_next:
                token, state = member.force()
            else:
                token, logp = out.token[draw], out.logp[draw]
                draw += 1
                if token < 0:  # only the excluded token has mass here, so keeping it was certain
                    token, logp = member.request.exclude, 0.0
                state = member.take(token, logp, logz, entropy, self.decoder.eos_ids)
            if state == Member.GOES_ON:
                groups.setdefault(token, []).append(member)
            else:
                done.append((member, token))
        self._split(lane, groups, survivors, done)

    def _split(
        self, lane: Lane, groups: dict[int, list[Member]], survivors: list[Lane], done: list[tuple[Member, int]]
    ) -> None:
        assert lane.sequence is not None
        branches: dict[int, Branch] = {}
        for member, token in done:  # equal tokens share one branch, so that their next rollouts share a lane
            self._pressed = False
            if member.gave_up:
                self._resolve(member.ticket, member.suffix(None))
                continue
            branch = branches.get(token)
            if branch is None:
                tokens = (*lane.tokens, token) if token >= 0 else tuple(lane.tokens)
                branch = branches[token] = self.residence.branch(lane, tokens)
            self._resolve(member.ticket, member.suffix(branch))
        if not groups:
            self.residence.drop(lane)
            return
        base = lane.tokens
        for i, (token, members) in enumerate(groups.items()):
            if i == len(groups) - 1:
                lane.members = members
                lane.tokens = base
                base.append(token)
                survivors.append(lane)
                return
            child = lane.split(next(self._counter), [*base, token], members)
            with contextlib.suppress(CacheFull):  # then it is recomputed when its turn comes
                child.sequence = self.decoder.fork(lane.sequence, lane.fed)
                child.fed = lane.fed
            survivors.append(child)


def _age(lane: Lane) -> tuple[int, int]:
    return lane.order, lane.age
