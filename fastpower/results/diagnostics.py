"""Did the chains mix, did the particles survive, where was work saved? Functions over results.

Moves are those at the full horizon only (of parallel tempering, the last rung's): moves of warm-up stages have another
target. Log-probabilities are natural logarithms, entropies are in nats; what cannot be known is NaN or None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpower.chains.record import Array
from fastpower.results import traces
from fastpower.results.result import Result

_SAVINGS = ("free_moves", "skipped_tokens", "early_rejections", "early_rejection_tokens")
_COSTS = ("decoded_tokens", "forwards", "prefill_tokens")


def moves(result: Result) -> list[dict[str, Any]]:
    """The moves of one run at the full horizon, in order; empty for methods without moves."""
    found = traces.moves_of({"trace": result.trace})
    return [move for move in found if move.get("horizon", result.max_new_tokens) == result.max_new_tokens]


def rhat(results: Sequence[Result], value: Callable[[dict[str, Any]], float] | None = None) -> dict[str, float]:
    """Rank-normalised split R-hat over the chains of every prompt, bulk or tail, whichever is larger.

    From Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021. Near 1 the chains agree; above 1.01 they have not mixed.

    Args:
        results: Of a method with moves.
        value: Of a move; default log p of the answer after it.

    Returns:
        R-hat by prompt; NaN where no chain ever changed.

    Raises:
        ValueError: Fewer than 2 chains of a prompt, or 4 moves at the full horizon, or chains of unequal numbers of
            moves.
    """
    of = value or (lambda move: float(move["logp"]))
    found = {}
    for prompt, group in _by_prompt(results).items():
        chains = [[of(move) for move in moves(result)] for result in group]
        shortest, longest = min(map(len, chains)), max(map(len, chains))
        if len(chains) < 2 or shortest < 4:
            raise ValueError(
                f"prompt {prompt!r}: R-hat needs 2 chains of 4 moves at the full horizon, got {len(chains)} with "
                f"{shortest}: give chains= and moves= (methods without moves have no R-hat)"
            )
        if shortest != longest:
            raise ValueError(
                f"prompt {prompt!r}: chains made between {shortest} and {longest} moves; leave out those with "
                "complete = False"
            )
        found[prompt] = split_rhat(np.array(chains))
    return found


def split_rhat(draws: Array) -> float:
    """Rank-normalised split R-hat of (chains, draws) values."""
    half = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :half], draws[:, -half:]])
    folded = np.abs(halves - np.median(halves))
    return max(_ratio(_normal_scores(halves)), _ratio(_normal_scores(folded)))


def _normal_scores(draws: Array) -> Array:
    """Normal quantiles of the ranks of all values together; equal values share their mean rank."""
    _, place, count = np.unique(draws, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2.0)[place.reshape(draws.shape)]
    quantile = NormalDist().inv_cdf
    return np.vectorize(quantile, otypes=[float])((rank - 0.375) / (draws.size + 0.25))  # type: ignore[no-any-return]


def _ratio(draws: Array) -> float:
    """R-hat of (chains, draws): √(total variance / variance within chains)."""
    n = draws.shape[1]
    between, within = n * draws.mean(1).var(ddof=1), draws.var(axis=1, ddof=1).mean()
    if within == 0.0:
        return math.inf if between > 0.0 else math.nan
    return math.sqrt((between / within + n - 1) / n)


def acceptance_by_position(results: Sequence[Result], bins: int = 10) -> tuple[Array, NDArray[np.int64]]:
    """(acceptance rate, number of moves) by cut position, as a fraction of the answer's length, in equal bins.

    All moves count, those of warm-up stages too. A bin without moves has rate NaN; both are empty without moves.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    return traces.acceptance_by_position(({"trace": result.trace} for result in results), bins)


def acceptance_over_moves(results: Sequence[Result]) -> tuple[Array, NDArray[np.int64]]:
    """(acceptance rate, number of chains) of the first, second, … move at the full horizon."""
    chains = [[bool(move["accepted"]) for move in moves(result)] for result in results]
    longest = max(map(len, chains), default=0)
    made = np.array([sum(len(chain) > i for chain in chains) for i in range(longest)], np.int64)
    accepted = np.array([sum(chain[i] for chain in chains if len(chain) > i) for i in range(longest)])
    return accepted / made, made


def ess_trace(result: Result) -> list[tuple[int, float, bool]]:
    """(position, effective sample size, resampled there?) at every check of a particle method."""
    return list(zip(*traces.ess_curve({"trace": result.trace}), strict=True))


def ancestors_trace(result: Result) -> list[tuple[int, int]]:
    """(position, particles that had offspring) at every resampling."""
    events = [event for event in result.trace if event.get("ancestors")]
    return [(int(event["position"]), len(set(event["ancestors"]))) for event in events]


def log_z(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Per prompt: log of the mean Ẑ over runs, and its standard error (by the delta method; NaN for a single run).

    Only runs that report ``log_z`` count; prompts without such runs are left out.
    """
    found = {}
    for prompt, group in _by_prompt(results).items():
        values = np.array([result.diagnostics["log_z"] for result in group if "log_z" in result.diagnostics])
        if len(values):
            z = np.exp(values - values.max())
            error = float(z.std(ddof=1) / math.sqrt(len(z)) / z.mean()) if len(z) > 1 else math.nan
            found[prompt] = (float(values.max() + math.log(z.mean())), error)
    return found


def entropy_by_position(results: Sequence[Result]) -> tuple[Array, NDArray[np.int64]]:
    """(mean entropy, number of answers that are so long) of position 0, 1, … of the answers."""
    longest = max((len(result.entropy) for result in results), default=0)
    count, total = np.zeros(longest, np.int64), np.zeros(longest)
    for result in results:
        count[: len(result.entropy)] += 1
        total[: len(result.entropy)] += result.entropy
    return total / count, count


def hit_cap_rate(results: Sequence[Result]) -> float:
    """Share of the answers that the horizon cut off.

    The horizon is part of the target: a high rate says that it is short for these prompts.
    """
    return float(np.mean([not result.ended for result in results])) if len(results) else math.nan


def savings(results: Sequence[Result]) -> dict[str, float]:
    """Totals of what the runs cost and what each acceleration saved; docs/mathematics.md, section 6, says which."""
    totals: dict[str, float] = {name: sum(getattr(result, name) for result in results) for name in _COSTS}
    for name in _SAVINGS:
        totals[name] = sum(result.diagnostics.get(name, 0) for result in results)
    for result in results:
        for name, value in result.savings.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """The main numbers of all that, JSON-able.

    Returns:
        By name. ``rhat`` is the worst of the prompts' (infinite where chains stand still at different answers), None
        where
        it cannot be computed; ``log_z`` is per prompt, with its standard error (None for a single run); ``least_ess``
        is
        the smallest effective sample size as a share of the particles, None for methods without.

    Raises:
        ValueError: Results of several methods, or none.
    """
    methods = sorted({result.method for result in results})
    if len(methods) != 1:
        raise ValueError(f"summary takes the results of one method, got {', '.join(methods) or 'none'}")
    try:
        values = [value for value in rhat(results).values() if not math.isnan(value)]
        worst = max(values, default=None)
    except ValueError:
        worst = None
    shares = [
        ess / result.diagnostics["particles"]
        for result in results
        if "particles" in result.diagnostics
        for _, ess, _ in ess_trace(result)
    ]
    made = sum(result.moves for result in results)
    return {
        "method": methods[0],
        "answers": len(results),
        "prompts": len(_by_prompt(results)),
        "mean_logp": float(np.mean([result.logp for result in results])),
        "mean_length": float(np.mean([len(result.token_ids) for result in results])),
        "mean_entropy": float(np.mean(np.concatenate([result.entropy for result in results]))),
        "hit_cap_rate": hit_cap_rate(results),
        "moves": made,
        "acceptance": sum(result.accepted for result in results) / made if made else None,
        "rhat": worst,
        "log_z": {
            prompt: [value, None if math.isnan(error) else error] for prompt, (value, error) in log_z(results).items()
        },
        "least_ess": min(shares, default=None),
        "savings": savings(results),
    }


def _by_prompt(results: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.prompt_id, []).append(result)
    return groups
