"""What the trace of a record says, whatever sampler wrote it.

A move is an event with ``accepted``; a particle sampler's events have ``ess`` and, where it resampled, ``ancestors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: an answer by the names of its fields: a line of a run folder, or a ``Result`` as JSON has it
RunLine = Mapping[str, Any]

BINS = 10


def by_method(records: Iterable[RunLine]) -> dict[str, list[RunLine]]:
    """Records of each method, in order of appearance."""
    groups: dict[str, list[RunLine]] = {}
    for record in records:
        groups.setdefault(str(record["method"]), []).append(record)
    return groups


def moves_of(record: RunLine) -> list[dict[str, Any]]:
    """Markov-chain moves in order: stage, cut, accepted, length and logp of the answer after the move.

    Of parallel tempering these are the moves of the last rung, the one that answers.
    """
    moves = [event for event in record.get("trace") or () if event.get("accepted") is not None and "logp" in event]
    rungs = {move["rung"] for move in moves if "rung" in move}
    return [move for move in moves if move.get("rung") == max(rungs)] if rungs else moves


def particles_of(record: RunLine) -> int | None:
    """Number of particles; None for methods without."""
    generations = ancestry(record)
    count = record.get("diagnostics", {}).get("particles") or (len(generations[0]) if generations else None)
    return None if count is None else int(count)


def acceptance_by_position(
    records: Iterable[RunLine], bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(acceptance rate, number of moves) by cut position as a fraction of the answer's length, in equal bins.

    Both are empty where no record has moves; a bin without moves has rate NaN.
    """
    tried, accepted = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for record in records:
        length = 0
        for move in moves_of(record):
            before, length = length or int(move["length"]), int(move["length"])
            if move.get("cut") is None or before == 0:
                continue
            place = min(bins - 1, int(bins * int(move["cut"]) / max(before, int(move["cut"]) + 1)))
            tried[place] += 1
            accepted[place] += bool(move["accepted"])
    if not tried.any():
        return np.zeros(0), np.zeros(0, np.int64)
    with np.errstate(invalid="ignore"):
        return accepted / tried, tried


def ess_curve(record: RunLine) -> tuple[list[int], list[float], list[bool]]:
    """(token position, ESS, resampled there?) of every weight check."""
    events = [e for e in record.get("trace") or () if e.get("ess") is not None]
    positions = [int(e.get("position", i)) for i, e in enumerate(events)]
    return positions, [float(e["ess"]) for e in events], [bool(e.get("resampled", "ancestors" in e)) for e in events]


def ancestry(record: RunLine) -> list[list[int]]:
    """Ancestor of every particle at every resampling, in order."""
    return [list(map(int, e["ancestors"])) for e in record.get("trace") or () if e.get("ancestors")]


def lineage(record: RunLine) -> list[int]:
    """Where the returned particle's ancestors stood: one index per generation, the particle itself last.

    Empty where the record does not name the returned particle (``diagnostics["particle"]``) or never resampled.
    """
    chosen, generations = record.get("diagnostics", {}).get("particle"), ancestry(record)
    if chosen is None or not generations:
        return []
    path = [int(chosen)]
    for ancestors in reversed(generations):
        path.append(ancestors[path[-1]])
    return path[::-1]
