"""A run in numbers: one row per method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpower.evaluate.statistics import (
    Difference,
    Estimate,
    accuracy,
    by_problem,
    compute_matched_best_of_n,
    majority_vote,
    mean_over_problems,
    paired_bootstrap,
    pass_at_k_of,
)
from fastpower.results.traces import RunLine, by_method, particles_of


@dataclass(frozen=True)
class Row:
    """A method on a task. Tokens and log p are means per answer, wall clock is for all answers together."""

    method: str
    answers: int
    accuracy: Estimate
    logp: float  #: nats
    tokens: float  #: tokens of the answer itself
    decoded_tokens: float  #: tokens drawn for it, rejected ones included
    wall_seconds: float | None  #: time during which at least one of its answers was under way
    tokens_per_second: float | None
    acceptance: float | None
    ess: float | None  #: mean effective sample size, as a fraction of the particles
    ended: float  #: fraction of answers that ended before the horizon
    pass_at_k: tuple[int, Estimate] | None
    majority: tuple[int, Estimate] | None
    against: Difference | None  #: accuracy minus that of the first method
    note: str = ""
    graded: str = "one answer"  #: what accuracy is of: single draws, or which of how many


def summarise(records: Sequence[RunLine], *, chains: int | None = None, match_best_of_n: bool = False) -> list[Row]:
    """Rows in order of appearance.

    Args:
        records: Of one run.
        chains: Plain answers beyond so many per problem are candidates of the compute-matched best-of-N only.
        match_best_of_n: That best-of-N gets a row for every other method.
    """
    groups = by_method(records)
    limit = chains or 10**9
    asked = {name: [r for r in group if int(r["chain"]) < limit] for name, group in groups.items()}
    first = next((group for group in asked.values() if group), [])
    rows = [_row(name, group, None if group is first else first) for name, group in asked.items() if group]
    if match_best_of_n and "plain" in groups:
        for name, group in asked.items():
            if name != "plain" and group:
                budgets = {p: float(np.mean([r["decoded_tokens"] for r in rs])) for p, rs in by_problem(group).items()}
                best = compute_matched_best_of_n(groups["plain"], budgets)
                n = float(np.mean([r["best_of"] for r in best]))
                short = sum(not r["budget_met"] for r in best)
                note = f"highest log p of {n:.1f} plain answers on average: the tokens of {name}"
                note += f"; too few answers on {short} problems" if short else ""
                best = [{k: v for k, v in r.items() if k not in ("seconds", "finished")} for r in best]
                rows.append(_row(f"best-of-N @ {name}", best, first, note))
    return rows


def _row(name: str, records: Sequence[RunLine], first: Sequence[RunLine] | None, note: str = "") -> Row:
    groups = by_problem(records)
    k = min(len(group) for group in groups.values())
    several = k > 1 and any(r.get("answer") is not None for r in records)
    wall = wall_clock(records)
    decoded = float(np.mean([r["decoded_tokens"] for r in records]))
    accepted = [float(r["acceptance"]) for r in records if r.get("acceptance") is not None]
    ess = [value for r in records if (value := relative_ess(r)) is not None]
    shared = first is not None and not {str(r["problem"]) for r in first}.isdisjoint(groups)
    return Row(
        method=name,
        answers=len(records),
        accuracy=accuracy(records),
        logp=mean_over_problems(records, "logp").mean,
        tokens=float(np.mean([len(r["token_ids"]) for r in records])),
        decoded_tokens=decoded,
        wall_seconds=wall,
        tokens_per_second=decoded * len(records) / wall if wall else None,
        acceptance=float(np.mean(accepted)) if accepted else None,
        ess=float(np.mean(ess)) if ess else None,
        ended=float(np.mean([bool(r["ended"]) for r in records])),
        pass_at_k=(k, pass_at_k_of(records, k)) if k > 1 else None,
        majority=(k, majority_vote(records)) if several else None,
        against=paired_bootstrap(records, first) if shared and first is not None else None,
        note=note,
        graded=_graded(records),
    )


def _graded(records: Sequence[RunLine]) -> str:
    """What was graded of a method: its single draws, or the one of highest log p among several."""
    draws = [int(r.get("best_of") or (r.get("diagnostics") or {}).get("draws") or 1) for r in records]
    return "one answer" if max(draws) <= 1 else f"best of {np.mean(draws):.3g} by log p"


def wall_clock(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds during which at least one of the records was under way; None without timings.

    The union of their [start, finish] intervals, so that pauses between a kill and its resume do not count.
    """
    spans = sorted(
        (float(r["finished"]) - float(r["seconds"]), float(r["finished"]))
        for r in records
        if r.get("finished") is not None and r.get("seconds") is not None
    )
    if not spans:
        return None
    total, end = 0.0, -np.inf
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return float(total)


def relative_ess(record: Mapping[str, Any]) -> float | None:
    """Mean effective sample size over a particle run's trace, divided by the number of particles."""
    particles = particles_of(record)
    values = [float(event["ess"]) for event in record.get("trace", ()) if event.get("ess") is not None]
    return float(np.mean(values)) / particles if values and particles else None
