"""Evaluating given tokens: a request that is one forward of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Decoder, Work
from fastpower.lanes import Lane
from fastpower.requests import Score, Scored
from fastpower.residence import Residence


class Scoring:
    """One ``Score`` under way."""

    def __init__(self, request: Score, age: int) -> None:
        self.request = request
        self.lane = Lane(0, age, request.parent, request.length, 1.0, None)
        self.keep = request.length - 1  # the token before the first scored one is fed again, to get its row
        self.tokens = [*self.lane.tokens, *request.tokens]

    def run(
        self, decoder: Decoder, residence: Residence, exponents: NDArray[np.float32], columns: list[int]
    ) -> tuple[Scored, int]:
        """The result and how many tokens were fed. May be called again after CacheFull, when there is more room.

        Raises CacheFull and InvalidLogits; what the lane holds is then the caller's to drop.
        """
        lane = self.lane
        if lane.sequence is None:
            residence.materialise(lane)
        assert lane.sequence is not None
        lane.fed = min(lane.fed, self.keep)
        decoder.truncate(lane.sequence, lane.fed)
        fed = len(self.tokens) - lane.fed
        [scores] = decoder.score([Work(lane.sequence, self.tokens[lane.fed :])], exponents)
        first = self.keep - lane.fed
        lane.fed = len(self.tokens)
        branch = residence.branch(lane, self.tokens)
        residence.drop(lane)
        rows = slice(first, first + len(self.request.tokens))
        result = Scored(
            scores.logp[rows].astype(np.float64),
            scores.logz[rows, columns].astype(np.float64),
            scores.entropy[rows].astype(np.float64),
            branch,
        )
        return result, fed
