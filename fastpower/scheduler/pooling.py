"""Tokens that several rows decode together: single forwards, those that wait share one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastpower.chains.chain import Ticket
from fastpower.chains.requests import Pool, Pooled
from fastpower.decoders.base import Decoder, PoolingDecoder, Work
from fastpower.errors import CacheFull, InvalidLogits
from fastpower.kernels import Status
from fastpower.scheduler.lanes import Lane
from fastpower.scheduler.residence import Residence


class Pooling:
    """One ``Pool`` under way: a lane for every branch."""

    def __init__(self, ticket: Ticket, request: Pool, ages: Iterator[int]) -> None:
        self.ticket = ticket
        self.request = request
        self.lanes = [Lane(0, next(ages), parent, len(parent.tokens), 1.0, None) for parent in request.parents]
        self.fed = 0

    def work(self, residence: Residence) -> list[Work]:
        """What is to be fed: of every branch what the cache does not hold, its last token at least.

        Raises:
            CacheFull: No room.
        """
        rows = []
        for lane in self.lanes:
            residence.materialise(lane)
            assert lane.sequence is not None
            rows.append(Work(lane.sequence, lane.tokens[lane.fed :]))
        self.fed = sum(len(row.tokens) for row in rows)
        return rows

    def result(self, token: int, logp: float, log_mass: float, residence: Residence) -> Pooled:
        """The result, and the branches that end with the token; the lanes are given back."""
        branches = []
        for lane in self.lanes:
            lane.fed = len(lane.tokens)
            if token >= 0:
                branches.append(residence.branch(lane, [*lane.tokens, token]))
        self.drop(residence)
        return Pooled(token, logp, log_mass, tuple(branches))

    def drop(self, residence: Residence) -> None:
        """Give the lanes back."""
        for lane in self.lanes:
            residence.drop(lane)


def pool_together(
    group: Sequence[Pooling], decoder: Decoder, residence: Residence, make_room: Callable[[], bool]
) -> list[Pooled | Exception]:
    """Results of all, in one forward; each alone if that finds no room, so that the error concerns its own request.

    Args:
        group: Requests.
        decoder: What draws.
        residence: Which sequences it holds.
        make_room: Asked after CacheFull; if it says that there is no more, CacheFull is the result.
    """
    if not isinstance(decoder, PoolingDecoder):
        error = TypeError(f"{type(decoder).__name__} has no forward_pooled, which rows that decode together need")
        return [error] * len(group)
    while True:
        try:
            rows = [pooling.work(residence) for pooling in group]
            out = decoder.forward_pooled(
                [row for own in rows for row in own],
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
                np.array([pooling.request.key for pooling in group], np.uint64),
                np.array([pooling.request.position for pooling in group], np.int64),
            )
        except CacheFull as error:
            for pooling in group:
                pooling.drop(residence)
            if len(group) > 1:
                return [pool_together([pooling], decoder, residence, make_room)[0] for pooling in group]
            if not make_room():
                return [error]
            continue
        results: list[Pooled | Exception] = []
        for pooling, token, logp, mass, status in zip(group, *(array.tolist() for array in out), strict=True):
            result = pooling.result(token, logp, mass, residence)
            bad = status & (Status.NAN | Status.MASKED)
            results.append(InvalidLogits("logits of a pooled row hold NaN or have no finite entry") if bad else result)
        return results
