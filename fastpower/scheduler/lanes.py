"""Rows of the decode batch and the rollouts that ride on them. The scheduler's private data."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastpower.chains.chain import Counts, Ticket
from fastpower.chains.requests import Branch, Rollout, Suffix
from fastpower.decoders.base import TokenDraws


class Member:
    """One rollout under way: what it has drawn so far."""

    GOES_ON: ClassVar[int] = 0
    DONE: ClassVar[int] = 1

    __slots__ = (
        "answer", "columns", "counts", "drawn", "draws_next", "ended", "exponents", "forced", "gave_up", "key", "most",
        "next_entropy", "next_logz", "peeking", "request", "stopping", "ticket", "watch",
    )  # fmt: skip

    def __init__(self, ticket: Ticket, request: Rollout, columns: list[int] | None) -> None:
        self.ticket = ticket
        self.counts: Counts = ticket.chain.counts
        self.request = request
        self.columns = columns  # the request's exponents among the scheduler's; None = all of them, in order
        self.key = request.key
        self.drawn: list[tuple[int, float, list[float], float]] = []  # token, logp, logz, entropy of each position
        self.forced = 0
        self.exponents = len(request.exponents)
        self.most = request.max_new - len(request.forced)  # tokens that it may draw
        self.watch = request.watch
        chain = ticket.chain
        self.stopping = chain.stopping_at(request.until) if request.until else chain.stopping
        #: the answer so far, kept where its text may end it
        self.answer = [*request.parent.tokens[chain.prompt_length : request.length]] if self.stopping else []
        self.ended = False
        self.gave_up = False
        self.peeking = False
        self.draws_next = not request.forced  # by the next forward: no token is forced, and it is no peek
        self.next_logz: list[float] | None = None
        self.next_entropy: float | None = None

    def force(self) -> tuple[int, int]:
        """The next forced token, and whether that was all."""
        token = int(self.request.forced[self.forced])
        self.forced += 1
        if self.stopping is not None:
            self.answer.append(token)
        self.draws_next = self.forced >= len(self.request.forced)
        self.counts.decoded_tokens += 1
        self.ticket.decoded += 1
        return token, Member.DONE if self.forced >= self.request.max_new else Member.GOES_ON

    def take(self, token: int, logp: float, logz: list[float], entropy: float, eos_ids: frozenset[int]) -> int:
        """Record a drawn token; DONE when the rollout is over."""
        if self.columns is not None:
            logz = [logz[i] for i in self.columns]
        elif len(logz) != self.exponents:  # exponents asked for by others since
            logz = logz[: self.exponents]
        self.drawn.append((token, logp, logz, entropy))
        self.counts.decoded_tokens += 1
        self.ticket.decoded += 1
        if token in eos_ids:
            self.ended = True
            return Member.DONE
        if self.stopping is not None:
            self.answer.append(token)
            if self.stopping(self.answer):
                self.ended = True
                return Member.DONE
        if len(self.drawn) >= self.most:
            if self.request.peek:
                self.peeking, self.draws_next = True, False
                return Member.GOES_ON
            return Member.DONE
        if self.watch is not None and self.watch(token, logp, logz, entropy):
            self.gave_up = True
            return Member.DONE
        return Member.GOES_ON

    def room(self) -> int:
        """How many guesses may be fed behind its last token: every row that they leave can still be of use."""
        return self.most - len(self.drawn) - 1 + self.request.peek

    def suffix(self, branch: Branch | None) -> Suffix:
        n, e = len(self.drawn), self.exponents
        next_logz = self.next_logz
        if next_logz is not None:
            columns = self.columns if self.columns is not None else range(e)
            next_logz = [next_logz[i] for i in columns]
        return Suffix(
            [token for token, _, _, _ in self.drawn],
            np.array([logp for _, logp, _, _ in self.drawn], np.float64),
            np.array([value for _, _, logz, _ in self.drawn for value in logz], np.float64).reshape(n, e),
            np.array([entropy for _, _, _, entropy in self.drawn], np.float64),
            self.ended,
            self.gave_up,
            branch,
            None if next_logz is None else np.array(next_logz, np.float64),
            self.next_entropy,
        )


class Lane:
    """One row: ``tokens`` of which the first ``fed`` are in the decoder's ``sequence``."""

    __slots__ = (
        "alpha", "fed", "guess", "known", "length", "members", "open", "parent", "rank", "resumed", "sequence", "start",
        "tokens",
    )  # fmt: skip

    def __init__(self, order: int, age: int, parent: Branch, length: int, alpha: float, member: Member | None) -> None:
        self.rank = (order, age)  # order of the chain that opened it: older chains go first
        self.parent = parent
        self.length = length
        self.alpha = alpha
        self.start = (id(parent), length)  # the parent is held by this lane, so its id is not reused meanwhile
        self.tokens: list[int] = list(parent.tokens[:length])
        self.fed = 0
        self.resumed = 0  # tokens that the cache had when the lane got its sequence
        self.sequence: int | None = None
        self.members: list[Member] = [] if member is None else [member]
        self.open = member is not None
        self.guess: list[int] = []  # fed behind the tokens by the next forward
        self.known = False  # a guesser has been told of what the lane departs from

    def split(self, age: int, tokens: list[int], members: list[Member]) -> Lane:
        """A lane for members whose tokens went another way; it has no sequence yet."""
        child = object.__new__(Lane)
        child.rank, child.parent, child.length = (self.rank[0], age), self.parent, self.length
        child.alpha, child.start, child.tokens, child.fed = self.alpha, self.start, tokens, 0
        child.resumed = 0
        child.guess, child.known = [], self.known
        child.sequence, child.members, child.open = None, members, False
        return child

    def feed(self, tokens: int) -> bool:
        """Book a forward that fed so many tokens to all members, in equal shares. True if nothing is left to feed."""
        self.fed += tokens
        complete = self.fed == len(self.tokens)
        share = 1.0 / len(self.members)
        for member in self.members:
            counts = member.counts
            counts.forwards += share
            if share < 1.0:
                counts.shared_rows += 1.0 - share
                counts.shared_prefill_tokens += (1.0 - share) * (tokens - 1)
            if tokens > 1:
                counts.prefill_tokens += share * (tokens - 1)
            if self.open and complete:
                counts.resumed_tokens += share * self.resumed
        return complete

    def may_guess(self) -> bool:
        """Whether guesses may be fed behind the tokens.

        All members draw, and nothing of their prefix is left to feed (where there is no sequence yet, the cache may
        have it).
        """
        if self.sequence is not None and self.fed != len(self.tokens) - 1:
            return False
        return all(member.draws_next for member in self.members)

    def room(self) -> int:
        """How many guesses can be of use behind the last token."""
        return min(member.room() for member in self.members)

    def draws_alone(self) -> bool:
        """Whether one token was fed and the only member draws: what nearly every row of a long run does."""
        return len(self.members) == 1 and self.members[0].draws_next and self.fed == len(self.tokens) - 1

    def advance_alone(self, out: TokenDraws, row: int, draw: int, eos_ids: frozenset[int]) -> tuple[int, bool]:
        """``feed`` and ``advance`` of a lane that ``draws_alone``: its token, and whether it goes on."""
        [member] = self.members
        self.fed += 1
        member.counts.forwards += 1
        token, logp = out.token[draw], out.logp[draw]
        if token < 0:  # only the excluded token has mass here, so keeping it was certain
            token, logp = member.request.exclude, 0.0
        return token, member.take(token, logp, out.logz[row], out.entropy[row], eos_ids) == Member.GOES_ON

    def advance(
        self, out: TokenDraws, row: int, draw: int, eos_ids: frozenset[int]
    ) -> tuple[dict[int, list[Member]], list[tuple[Member, int]]]:
        """Hand a row's results to the members; ``draw`` is the row's first draw.

        Returns:
            Members that go on by the token they go on with, and the others with their last token (−1: none was drawn).
        """
        logz, entropy = out.logz[row], out.entropy[row]
        groups: dict[int, list[Member]] = {}
        done: list[tuple[Member, int]] = []
        for member in self.members:
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
                state = member.take(token, logp, logz, entropy, eos_ids)
            if state == Member.GOES_ON:
                groups.setdefault(token, []).append(member)
            else:
                done.append((member, token))
        return groups, done
