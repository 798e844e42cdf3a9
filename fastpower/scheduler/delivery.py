"""What a forward found, handed to the lanes: members take their draws, lanes split, finished rollouts resolve."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpower.chains.requests import Branch
from fastpower.decoders.base import Decoder, TokenDraws
from fastpower.errors import CacheFull, InvalidLogits
from fastpower.scheduler.batch import Batch
from fastpower.scheduler.guesses import Guesses
from fastpower.scheduler.lanes import Lane, Member
from fastpower.scheduler.residence import Residence
from fastpower.scheduler.running import Running

# NAN | MASKED of fastpower.kernels.Status; written out so that the hot loop compares integers.
_BAD_ROW = 1 | 2


class Delivery:
    """The end of every step of one scheduler.

    Args:
        decoder: Whose sequences end.
        residence: Which sequences it holds.
        running: The chains under way.
        guesses: What is guessed for lanes.
        counter: Numbers new lanes by age.
    """

    def __init__(
        self, decoder: Decoder, residence: Residence, running: Running, guesses: Guesses, counter: Iterator[int]
    ) -> None:
        self._decoder = decoder
        self._residence = residence
        self._running = running
        self._guesses = guesses
        self._counter = counter
        self.open: dict[tuple[int, int], Lane] = {}  #: (id of parent, length) → lane that has not drawn yet
        self.gave_back = False  #: a rollout ended in the last step: memory may be free again

    def hand_out(self, batch: Batch, out: TokenDraws) -> list[Lane]:
        """Give every lane of the batch its row; the lanes that go on, in order."""
        self.gave_back = False
        survivors: list[Lane] = []
        eos_ids, status, firsts = self._decoder.eos_ids, out.status, batch.firsts
        for row, lane in enumerate(batch.lanes):
            if lane.guess:
                self._verify(lane, row, batch, out, survivors)
                continue
            base = batch.bases[row]
            if lane.open or status[base] & _BAD_ROW or not lane.draws_alone():
                self._deliver(lane, row, batch, out, survivors)
                continue
            token, goes_on = lane.advance_alone(out, base, firsts[row], eos_ids)
            if goes_on:
                lane.tokens.append(token)
                survivors.append(lane)
            else:
                self._go_on(lane, {}, survivors, [(lane.members[0], token)])
        return survivors

    def close(self, lane: Lane) -> None:
        """The lane is about to draw, or gone: nobody can join it any more."""
        if lane.open:
            lane.open = False
            if self.open.get(lane.start) is lane:
                del self.open[lane.start]

    def fail(self, lane: Lane, error: Exception) -> None:
        self._residence.drop(lane)
        for member in lane.members:
            self._running.resolve(member.ticket, None, error)

    def _deliver(self, lane: Lane, row: int, batch: Batch, out: TokenDraws, survivors: list[Lane]) -> None:
        """Hand a row's results to the lane's members, finish those that are done, split the rest by token."""
        if not lane.feed(len(batch.work[row].tokens)):
            survivors.append(lane)
            return
        if lane.open:
            self.close(lane)
            self._residence.share(lane)
        status: int = out.status[batch.bases[row]]
        if status & _BAD_ROW:
            self.fail(lane, _bad_row(status, len(lane.tokens)))
            return
        groups, done = lane.advance(out, batch.bases[row], batch.firsts[row], self._decoder.eos_ids)
        self._go_on(lane, groups, survivors, done)

    def _verify(self, lane: Lane, row: int, batch: Batch, out: TokenDraws, survivors: list[Lane]) -> None:
        """Take what the members drew behind the last token and its guesses, in order, as far as all drew the guess."""
        assert lane.sequence is not None
        guess, lane.guess = lane.guess, []
        lane.feed(1)
        if lane.open:
            self.close(lane)
            self._residence.share(lane)
        base, draw, members = batch.bases[row], batch.firsts[row], len(lane.members)
        for kept in range(len(guess) + 1):
            status = out.status[base + kept]
            if status & _BAD_ROW:
                self.fail(lane, _bad_row(status, len(lane.tokens)))
                return
            groups, done = lane.advance(out, base + kept, draw + kept * members, self._decoder.eos_ids)
            if done or kept == len(guess) or groups.keys() != {guess[kept]}:
                break
            lane.tokens.append(guess[kept])
            lane.fed += 1
        self._guesses.matched(lane, len(guess), kept, kept < len(guess) and bool(groups))
        if kept < len(guess):
            self._decoder.truncate(lane.sequence, lane.fed)
        self._go_on(lane, groups, survivors, done)

    def _go_on(
        self, lane: Lane, groups: dict[int, list[Member]], survivors: list[Lane], done: list[tuple[Member, int]]
    ) -> None:
        """Finish those that are done, and go on with the others, split by token."""
        if not done and len(groups) == 1:
            lane.tokens.extend(groups)
            survivors.append(lane)
            return
        assert lane.sequence is not None
        branches: dict[int, Branch] = {}
        for member, token in done:  # equal tokens share one branch, so that their next rollouts share a lane
            self.gave_back = True
            self._guesses.ended(lane, member.ticket.chain, token)
            if member.gave_up:
                self._running.resolve(member.ticket, member.suffix(None))
                continue
            branch = branches.get(token)
            if branch is None:
                tokens = (*lane.tokens, token) if token >= 0 else tuple(lane.tokens)
                branch = branches[token] = self._residence.branch(lane, tokens)
            self._running.resolve(member.ticket, member.suffix(branch))
        if not groups:
            self._residence.drop(lane)
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
                child.sequence = self._decoder.fork(lane.sequence, lane.fed)
                child.fed = lane.fed
            survivors.append(child)


def _bad_row(status: int, position: int) -> InvalidLogits:
    what = "NaN or +inf" if status & 1 else "no finite entry"
    return InvalidLogits(f"the logits at position {position} hold {what}; check the model's weights and dtype")
