"""One step ahead: the next decode step is under way before the results of the last one are looked at.

Draws are keyed by (key, position), so what row s draws next depends on nothing that the caller could still say, except
whether it goes on at all. While the caller works on the results of step t, step t + 1 of the same rows is already
computed: each fed the token it has just drawn, with the same key, the next position and nothing excluded. If the caller
then asks for just that, the results are handed over; if it asks for something else of a row (a fork, a cut, nothing),
the surplus token is truncated away, which costs nothing in a paged cache. Results are the same, bit for bit, on a
decoder whose rows do not depend on their batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Draws, TokenDraws, Work, check_draws
from fastpower.errors import CacheFull

Ints = NDArray[np.int64]


class Launched(Protocol):
    """A step under way; row i drew once."""

    def result(self) -> TokenDraws:
        """Its results, waited for."""


#: starts a step of S sequences, one token and one draw each; tokens (S,), or None: what the step before drew
Launch = Callable[[Ints, Ints | None, Draws, "Launched | None"], Launched]


@dataclass
class _Surplus:
    """A step that was started ahead. Row i of it belongs to sequences[i], which holds its token, unless cut."""

    launched: Launched
    sequences: Ints
    draws: Draws
    fed: Ints
    row: dict[int, int]  #: of the sequences whose token was not cut


class StepAhead:
    """Runs steps of one decoder ahead.

    Args:
        plain: Appends and draws, all or nothing (``Decoder.forward``).
        launch: Starts a step in which every row has one token and one draw; raises CacheFull, nothing changed.
        lengths: Tokens that sequences hold, surplus ones included.
        cut: Keeps the first tokens of a sequence.
        max_length: Of the context.
        eos_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        plain: Callable[[Sequence[Work], Draws], TokenDraws],
        launch: Launch,
        lengths: Callable[[Ints], Ints],
        cut: Callable[[int, int], None],
        max_length: int,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._plain, self._launch, self._lengths, self._cut = plain, launch, lengths, cut
        self._max_length, self._eos_ids = max_length, eos_ids
        self._surplus: _Surplus | None = None
        self.used = self.wasted = 0  #: rows computed ahead that were handed over, and that were in vain

    def surplus(self, sequence: int) -> int:
        """Tokens that a sequence holds beyond what its owner has fed: 0 or 1."""
        return int(self._surplus is not None and sequence in self._surplus.row)

    def settle(self, sequence: int | None = None) -> None:
        """Cut the surplus token of a sequence (None: of all): before anything else is done with it."""
        ahead = self._surplus
        if ahead is None:
            return
        for one in list(ahead.row) if sequence is None else [sequence] if sequence in ahead.row else []:
            del ahead.row[one]
            self.wasted += 1
            self._cut(one, int(self._lengths(np.array([one], np.int64))[0]) - 1)
        if not ahead.row:
            self._surplus = None

    def forward(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """``Decoder.forward``, with the same results and errors."""
        check_draws(draws)
        ahead = self._surplus
        if ahead is not None and self._is_next(ahead, work, draws):
            return self._go_on(ahead, draws)
        return self._mixed(work, draws)

    # ----------------------------------------------------------------------------------------------- internals

    def _is_next(self, ahead: _Surplus, work: Sequence[Work], draws: Draws) -> bool:
        """Whether a call asks for exactly what was computed ahead."""
        rows = len(work)
        return (
            rows == len(ahead.sequences) == len(ahead.row) == len(draws.rows)
            and all(len(row.tokens) == 1 for row in work)
            and np.array_equal(np.fromiter((row.sequence for row in work), np.int64, rows), ahead.sequences)
            and np.array_equal(np.fromiter((row.tokens[0] for row in work), np.int64, rows), ahead.fed)
            and all(np.array_equal(getattr(draws, name), getattr(ahead.draws, name)) for name in Draws._fields)
        )

    def _go_on(self, ahead: _Surplus, draws: Draws) -> TokenDraws:
        """The usual step: start the one after it, then read this one's results."""
        self._surplus = None  # its tokens are the caller's now, whatever comes
        self.used += len(ahead.sequences)
        following = self._start(ahead.sequences, None, draws, ahead.launched)
        out = ahead.launched.result()
        if following is not None:
            following.fed = out.token
            self._surplus = following
            for sequence, token in zip(ahead.sequences.tolist(), out.token.tolist(), strict=True):
                if token < 0:  # nothing was drawn: what was fed instead is of no use
                    self.settle(sequence)
        return out

    def _mixed(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """Rows that were foreseen get their results, the others a forward of their own."""
        rows = len(work)
        if len({row.sequence for row in work}) < rows:  # refused, with the words of the decoder
            self.settle()
            return self._plain(work, draws)
        count = np.bincount(draws.rows, minlength=rows) if len(draws.rows) else np.zeros(rows, np.int64)
        first = np.full(rows, -1, np.int64)
        first[draws.rows[::-1]] = np.arange(len(draws.rows))[::-1]
        ahead, found = self._surplus, dict[int, int]()
        if ahead is not None:
            if np.array_equal(draws.exponents, ahead.draws.exponents):
                found = {i: at for i in range(rows) if (at := self._place(ahead, work[i], draws, i, count, first)) >= 0}
            for row in work if len(found) < rows else ():
                if row.sequence in ahead.row and row.sequence not in {work[i].sequence for i in found}:
                    self.settle(row.sequence)
        try:
            out = self._merge(ahead, found, work, draws)
        except CacheFull:
            if self._surplus is None:
                raise
            self.settle()  # surplus tokens take no room from what was asked for
            found, out = {}, self._plain(work, draws)
        for i in found:  # the tokens are the caller's now
            assert ahead is not None
            del ahead.row[work[i].sequence]
        self.used += len(found)
        self.settle()
        self._start_rows(work, draws, out, count, first)
        return out

    def _place(self, ahead: _Surplus, row: Work, draws: Draws, i: int, count: Ints, first: Ints) -> int:
        """The row of the step ahead that answers row i, or −1."""
        at = ahead.row.get(row.sequence, -1)
        if at < 0 or len(row.tokens) != 1 or count[i] != 1 or row.tokens[0] != ahead.fed[at]:
            return -1
        d, had = first[i], ahead.draws
        same = (
            draws.keys[d] == had.keys[at]
            and draws.positions[d] == had.positions[at]
            and draws.exclude[d] == had.exclude[at]
            and draws.alpha[i] == had.alpha[at]
        )
        return at if same else -1

    def _merge(self, ahead: _Surplus | None, found: dict[int, int], work: Sequence[Work], draws: Draws) -> TokenDraws:
        if not found:
            return self._plain(work, draws)
        assert ahead is not None
        rest = [i for i in range(len(work)) if i not in found]
        outs = [(np.array(list(found)), np.array(list(found.values())), ahead.launched.result, None)]
        other: TokenDraws | None = None
        place = np.full(len(work), -1, np.int64)
        place[rest] = np.arange(len(rest))
        theirs = np.flatnonzero(place[draws.rows] >= 0)
        if rest:
            part = Draws(
                draws.alpha[rest],
                draws.exponents,
                place[draws.rows[theirs]],
                draws.keys[theirs],
                draws.positions[theirs],
                draws.exclude[theirs],
            )
            other = self._plain([work[i] for i in rest], part)
        mine, at, result, _ = outs[0]
        done = result()
        size, exponents = len(work), len(draws.exponents)
        token, logp = np.empty(len(draws.rows), np.int64), np.empty(len(draws.rows), np.float32)
        logz, entropy = np.empty((size, exponents), np.float32), np.empty(size, np.float32)
        status = np.empty(size, np.int32)
        logz[mine], entropy[mine], status[mine] = done.logz[at], done.entropy[at], done.status[at]
        row_of = np.full(size, -1, np.int64)
        row_of[mine] = at
        own = np.flatnonzero(row_of[draws.rows] >= 0)
        token[own], logp[own] = done.token[row_of[draws.rows[own]]], done.logp[row_of[draws.rows[own]]]
        if other is not None:
            logz[rest], entropy[rest], status[rest] = other.logz, other.entropy, other.status
            token[theirs], logp[theirs] = other.token, other.logp
        return TokenDraws(token, logp, logz, entropy, status)

    def _start_rows(self, work: Sequence[Work], draws: Draws, out: TokenDraws, count: Ints, first: Ints) -> None:
        """Start the next step of the rows that drew once, if they are most."""
        rows = np.flatnonzero(count == 1)
        tokens = np.asarray(out.token, np.int64)[first[rows]]
        ends = np.isin(tokens, np.fromiter(self._eos_ids, np.int64, len(self._eos_ids)))
        rows = rows[(tokens >= 0) & ~ends]
        if 2 * len(rows) < len(work) or not len(rows):
            return
        d = first[rows]
        each = Draws(
            draws.alpha[rows],
            draws.exponents,
            np.arange(len(rows), dtype=np.int64),
            draws.keys[d],
            draws.positions[d],
            np.full(len(rows), -1, np.int64),
        )
        sequences = np.array([work[i].sequence for i in rows.tolist()], np.int64)
        self._surplus = self._start(sequences, np.asarray(out.token, np.int64)[d], each, None)

    def _start(self, sequences: Ints, tokens: Ints | None, draws: Draws, before: Launched | None) -> _Surplus | None:
        """The step after ``draws``: the same keys at the next positions. None if it does not fit."""
        following = Draws(
            draws.alpha,
            draws.exponents,
            np.arange(len(sequences), dtype=np.int64),
            draws.keys,
            draws.positions + 1,
            np.full(len(sequences), -1, np.int64),
        )
        if int(self._lengths(sequences).max()) + 1 > self._max_length:
            return None
        try:
            launched = self._launch(sequences, tokens, following, before)
        except CacheFull:
            return None
        fed = np.empty(0, np.int64) if tokens is None else tokens
        return _Surplus(launched, sequences, following, fed, {s: i for i, s in enumerate(sequences.tolist())})
