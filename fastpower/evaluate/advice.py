"""Should this task be sharpened with this model, and how far? Answered from pools of cheap answers, before any MCMC.

Half of a pool is drawn from the model itself and half at a low temperature; reweighted (``results.pools``) they say for
every alpha what accuracy p^alpha would have, which length it prefers and how often the horizon would cut it off. An
estimate with fewer than three effective answers a problem is not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastpower.evaluate.statistics import by_problem
from fastpower.results.pools import FEWEST, reweight
from fastpower.results.traces import RunLine


@dataclass(frozen=True)
class Prediction:
    """What the pools say of one exponent; means over problems.

    Attributes:
        alpha: The exponent.
        ess: Effective answers per problem, the mean.
        readable: Problems with at least three effective answers.
        accuracy: Expected accuracy of one answer from p^alpha; None where fewer than half of the problems are readable.
        low, high: 95 % interval over problems, of the accuracy.
        gain: Accuracy minus that of low temperature's answers, on the same problems.
        gain_low, gain_high: 95 % interval of the gain.
        length: Tokens of an answer.
        cut: The share that the horizon cuts off.
        log_z: Mean log Ẑ(alpha).
    """

    alpha: float
    ess: float
    readable: int
    problems: int
    accuracy: float | None
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    length: float
    cut: float
    log_z: float


def predict(records: Sequence[RunLine], alpha: float, *, resamples: int = 4000, seed: int = 0) -> Prediction:
    """What p^alpha would do, from graded pools.

    Args:
        records: Graded answers of ``plain`` and ``low_temperature``, with ``problem``, ``correct``, ``ended``.
        alpha: The exponent asked about.
        resamples: Bootstrap resamples of problems.
        seed: Of the bootstrap.

    Raises:
        ValueError: No records, or a pool that cannot be reweighted (see ``pools.reweight``).
    """
    groups = by_problem(records)
    if not groups:
        raise ValueError("no answers to advise from: draw a pool first")
    rows, seen = [], []
    for group in groups.values():
        pool = reweight(group, alpha)
        seen.append(pool)
        cooled = [float(r["correct"]) for r in group if str(r["method"]).startswith("low_temperature")]
        right = pool.mean([float(r["correct"]) for r in group])
        rows.append(
            (
                right,
                right - (float(np.mean(cooled)) if cooled else np.nan),
                pool.mean([len(r["token_ids"]) for r in group]),
                pool.mean([float(not r["ended"]) for r in group]),
                pool.log_z,
            )
        )
    table = np.array(rows)
    ess = np.array([pool.ess for pool in seen])
    readable = int((ess >= FEWEST).sum())
    means = table.mean(axis=0)
    picks = np.random.default_rng(seed).integers(0, len(table), size=(resamples, len(table)))
    drawn = table[picks, :2].mean(axis=1)
    (low, gain_low), (high, gain_high) = np.quantile(drawn, [0.025, 0.975], axis=0)
    stated = 2 * readable >= len(table)
    return Prediction(
        alpha,
        float(ess.mean()),
        readable,
        len(table),
        float(means[0]) if stated else None,
        float(low),
        float(high),
        float(means[1]),
        float(gain_low),
        float(gain_high),
        float(means[2]),
        float(means[3]),
        float(means[4]),
    )


def verdict(predictions: Sequence[Prediction], plain: float, cooled: float) -> str:
    """One sentence of advice.

    Args:
        predictions: Of several exponents.
        plain: Accuracy of the model's own answers.
        cooled: Accuracy of low temperature's.
    """
    stated = [p for p in predictions if p.accuracy is not None and p.alpha > 1]
    if not stated:
        return (
            f"These pools cannot tell: fewer than {FEWEST:g} effective answers for most problems at every alpha. "
            "Draw larger pools, or measure with smc on some problems."
        )
    best = max(stated, key=lambda p: p.accuracy or 0.0)
    assert best.accuracy is not None
    base = max(plain, cooled)
    name = "low temperature" if cooled >= plain else "plain sampling"
    if best.accuracy <= base:
        return (
            f"Do not sharpen here: {name} has {base:.2f}, and the best that p^alpha promises is {best.accuracy:.2f} at "
            f"alpha = {best.alpha:g}."
        )
    if best.gain_low <= 0 and cooled >= plain:
        return (
            f"Perhaps alpha = {best.alpha:g}: {best.accuracy:.2f} against {base:.2f} by {name}, but the interval of "
            f"the gain ({best.gain_low:+.2f} to {best.gain_high:+.2f}) holds 0; low temperature costs a fraction."
        )
    return f"Sharpen with alpha = {best.alpha:g}: {best.accuracy:.2f} is predicted against {base:.2f} by {name}."
