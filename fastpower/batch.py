"""The rows of one forward: what each lane feeds, and the draws of the lanes whose tokens are all in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Decoder, Draws, TokenDraws, Work
from fastpower.lanes import Lane
from fastpower.residence import Residence


class Batch:
    """One forward over ``lanes``, each with a sequence; row i is lane i.

    prefill_tokens: tokens beyond one per row that may be fed; a lane with more left feeds a chunk and draws nothing.
    Work here is proportional to the rows and the tokens fed, never to what the sequences hold.
    """

    __slots__ = ("alphas", "exclude", "firsts", "keys", "lanes", "positions", "rows", "tokens", "work")

    def __init__(self, lanes: Sequence[Lane], residence: Residence, prefill_tokens: int) -> None:
        """Lanes without a sequence get one. Raises CacheFull; lanes that have got theirs keep it."""
        self.lanes = lanes
        self.work: list[Work] = []
        self.tokens = 0  #: fed by all rows
        self.firsts: list[int] = []  #: per row: index of its first draw
        self.alphas: list[float] = []
        self.rows: list[int] = []
        self.keys: list[int] = []
        self.positions: list[int] = []
        self.exclude: list[int] = []
        budget = prefill_tokens
        for row, lane in enumerate(lanes):
            if lane.sequence is None:
                residence.materialise(lane)
            assert lane.sequence is not None
            length, fed = len(lane.tokens), lane.fed
            take = length - fed
            if take > 1:
                take = min(take, 1 + budget)
                budget -= take - 1
            self.work.append(Work(lane.sequence, lane.tokens[fed : fed + take]))
            self.tokens += take
            self.alphas.append(lane.alpha)
            self.firsts.append(len(self.rows))
            if fed + take < length:
                continue  # a prefill chunk that is not the last
            for member in lane.members:
                if member.draws_next:
                    request = member.request
                    self.rows.append(row)
                    self.keys.append(request.key)
                    self.positions.append(length)
                    self.exclude.append(-1 if member.tokens else request.exclude)

    def forward(self, decoder: Decoder, exponents: NDArray[np.float32]) -> TokenDraws:
        """Run it. The arrays of the result are lists: single elements are read from here on. Raises CacheFull."""
        draws = Draws(
            np.array(self.alphas, np.float32),
            exponents,
            np.array(self.rows, np.int64),
            np.array(self.keys, np.uint64),
            np.array(self.positions, np.int64),
            np.array(self.exclude, np.int64),
        )
        out = decoder.forward(self.work, draws)
        return TokenDraws(*(array.tolist() for array in out))
