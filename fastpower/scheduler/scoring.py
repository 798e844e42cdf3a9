"""Evaluating given tokens: requests that are one forward of their own, together with those that wait beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastpower.chains.chain import Ticket
from fastpower.chains.requests import Score, Scored
from fastpower.decoders.base import Decoder, SequenceScores, Work
from fastpower.errors import CacheFull, InvalidLogits
from fastpower.scheduler.lanes import Lane
from fastpower.scheduler.residence import Residence


class Scoring:
    """One ``Score`` under way.

    Args:
        ticket: Who waits for it.
        request: What is scored.
        columns: The request's exponents among those that are computed.
        age: Of its lane.
    """

    def __init__(self, ticket: Ticket, request: Score, columns: list[int], age: int) -> None:
        self.ticket = ticket
        self.request = request
        self.columns = columns
        self.lane = Lane(0, age, request.parent, request.length, 1.0, None)
        self.tokens = [*self.lane.tokens, *request.tokens]
        self.begin = 0  #: tokens that the cache had
        self.fed = 0

    def work(self, decoder: Decoder, residence: Residence) -> Work:
        """What is to be fed; again after the lane was dropped.

        Raises:
            CacheFull: No room.
        """
        lane = self.lane
        if lane.sequence is None:
            residence.materialise(lane)
        assert lane.sequence is not None
        # The token before the first scored one is fed again, to get its row.
        self.begin = lane.fed = min(lane.fed, self.request.length - 1)
        self.fed = len(self.tokens) - self.begin
        decoder.truncate(lane.sequence, self.begin)
        return Work(lane.sequence, self.tokens[self.begin :])

    def result(self, scores: SequenceScores, residence: Residence) -> Scored:
        """The result, and the branch that ends with the tokens; the lane is given back."""
        self.lane.fed = len(self.tokens)
        branch = residence.branch(self.lane, self.tokens)
        residence.drop(self.lane)
        first = self.request.length - 1 - self.begin
        rows = slice(first, first + len(self.request.tokens))
        return Scored(
            scores.logp[rows].astype(np.float64),
            scores.logz[rows, self.columns].astype(np.float64),
            scores.entropy[rows].astype(np.float64),
            branch,
        )


def score_together(
    group: Sequence[Scoring],
    decoder: Decoder,
    residence: Residence,
    exponents: NDArray[np.float32],
    make_room: Callable[[], bool],
) -> list[Scored | Exception]:
    """Results of all, in one forward; each alone if that fails, so that an error concerns its own request only.

    Args:
        group: Requests.
        decoder: What scores.
        residence: Which sequences it holds.
        exponents: (E,) of the statistics.
        make_room: Asked after CacheFull; if it says that there is no more, CacheFull is the result.
    """
    while True:
        try:
            found = decoder.score([scoring.work(decoder, residence) for scoring in group], exponents)
            return [scoring.result(scores, residence) for scoring, scores in zip(group, found, strict=True)]
        except (CacheFull, InvalidLogits) as error:
            for scoring in group:
                residence.drop(scoring.lane)
            if len(group) > 1:
                alone = [score_together([scoring], decoder, residence, exponents, make_room) for scoring in group]
                return [result for [result] in alone]
            if not isinstance(error, CacheFull) or not make_room():
                return [error]
