"""The rows of one forward: what each lane feeds, and the draws of the lanes whose tokens are all in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Decoder, Draws, TokenDraws, VerifyingDecoder, Work
from fastpower.scheduler.lanes import Lane
from fastpower.scheduler.residence import Residence


class Batch:
    """One forward over ``lanes``, each with a sequence; row i is lane i.

    Work here is proportional to the rows and the tokens fed, never to what the sequences hold.

    Args:
        prefill_tokens: Tokens beyond one per row that may be fed; a lane with more left feeds a chunk and draws
            nothing.
    """

    __slots__ = (
        "alphas",
        "bases",
        "counts",
        "exclude",
        "firsts",
        "keys",
        "lanes",
        "positions",
        "rows",
        "tokens",
        "work",
    )

    def __init__(self, lanes: Sequence[Lane], residence: Residence, prefill_tokens: int) -> None:
        """Lanes without a sequence get one; lanes that have got theirs keep it whatever is raised.

        Raises:
            CacheFull: No room.
        """
        self.lanes = lanes
        self.work: list[Work] = []
        self.firsts: list[int] = []  #: per row: index of its first draw
        self.bases: list[int] = []  #: per row: index of its first row of logits
        self.counts: list[int] = []  #: per row: rows of logits
        self.rows: list[int] = []
        self.keys: list[int] = []
        self.positions: list[int] = []
        self.exclude: list[int] = []
        budget = prefill_tokens
        work, firsts, rows, keys = self.work, self.firsts, self.rows, self.keys
        positions, exclude = self.positions, self.exclude
        self.alphas: list[float] = []
        guessed = 0
        for lane in lanes:
            sequence = lane.sequence
            if sequence is None:
                residence.materialise(lane)
                assert lane.sequence is not None
                sequence = lane.sequence
            tokens, fed = lane.tokens, lane.fed
            length = len(tokens)
            firsts.append(len(rows))
            base = len(self.alphas)
            self.bases.append(base)
            self.alphas.append(lane.alpha)
            self.counts.append(1)
            if fed == length - 1 and lane.guess:
                work.append(Work(sequence, [tokens[fed], *lane.guess]))
                n = len(lane.guess)
                guessed += n
                self.counts[-1] += n
                self.alphas += [lane.alpha] * n
                for ahead in range(n + 1):
                    for member in lane.members:
                        rows.append(base + ahead)
                        keys.append(member.key)
                        positions.append(length + ahead)
                        exclude.append(-1 if member.drawn or ahead else member.request.exclude)
                continue
            lane.guess = []
            if fed == length - 1:
                work.append(Work(sequence, tokens[fed:]))
            else:
                take = min(length - fed, 1 + budget)
                budget -= take - 1
                work.append(Work(sequence, tokens[fed : fed + take]))
                if fed + take < length:
                    continue  # a prefill chunk that is not the last
            for member in lane.members:
                if member.draws_next:
                    rows.append(base)
                    keys.append(member.key)
                    positions.append(length)
                    exclude.append(-1 if member.drawn else member.request.exclude)
        self.tokens: int = len(lanes) + prefill_tokens - budget + guessed  #: fed by all rows

    def forward(self, decoder: Decoder, exponents: NDArray[np.float32]) -> TokenDraws:
        """Run it. The arrays of the result are lists: single elements are read from here on.

        Raises:
            CacheFull: No room.
        """
        draws = Draws(
            np.array(self.alphas, np.float32),
            exponents,
            np.array(self.rows, np.int64),
            np.array(self.keys, np.uint64),
            np.array(self.positions, np.int64),
            np.array(self.exclude, np.int64),
        )
        if len(self.alphas) > len(self.work):
            assert isinstance(decoder, VerifyingDecoder)
            out = decoder.verify(self.work, self.counts, draws)
        else:
            out = decoder.forward(self.work, draws)
        return TokenDraws(*(array.tolist() for array in out))
