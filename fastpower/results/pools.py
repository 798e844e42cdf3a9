"""One pool of independent answers, every alpha: what p^alpha would do, by reweighting, without further model calls.

An answer x drawn token by token at exponent a has the law q_a(x) = p(x)^a / Π_t z_a(x_<t), so that its weight under
p^alpha is

    log w(x) = alpha·log p(x) − log q_a(x) = (alpha − a)·log p(x) + Σ_t logz_a(x_<t),

which is (alpha − 1)·log p(x) for plain answers (a = 1) and Σ logz at alpha = a. Two pools, plain and at a, combine by
the balance heuristic: q is the mixture of both in the proportions drawn (Veach & Guibas 1995), which never has a larger
weight than either alone. The estimates are consistent in the number of answers; the effective sample size says when
they are not worth reading, and with fewer than three effective answers none of them is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpower.chains.record import Array
from fastpower.random import Purpose, derive, select, uniform

#: effective answers below which an estimate is not stated
FEWEST = 3.0


@dataclass(frozen=True)
class Reweighted:
    """A pool of n answers to one prompt, seen as draws from p^alpha.

    Attributes:
        alpha: The exponent.
        weights: (n,) normalised weights of the answers, in their order.
        ess: Effective sample size (Σw)² / Σw², between 1 and n.
        log_z: log Ẑ(alpha), the log of the mean weight: an unbiased estimate of Z = Σ_x p(x)^alpha, in logs.
    """

    alpha: float
    weights: Array
    ess: float
    log_z: float

    @property
    def reliable(self) -> bool:
        """Whether there are enough effective answers to state what this pool says."""
        return self.ess >= FEWEST

    def mean(self, values: Sequence[float]) -> float:
        """Self-normalised mean of one value per answer."""
        return float(self.weights @ np.asarray(values, np.float64))


def reweight(answers: Sequence[Any], alpha: float) -> Reweighted:
    """Weights of independent answers to one prompt under p^alpha.

    Args:
        answers: ``Result`` objects or record dictionaries of the methods ``plain`` and ``low_temperature``, of one
            prompt and one horizon. Where both methods are there, they were recorded with the same alpha.
        alpha: The exponent asked about, > 0.

    Raises:
        ValueError: No answers, another method, several horizons, or pools at more than one exponent beside 1.
    """
    if not alpha > 0 or not math.isfinite(alpha):
        raise ValueError(f"alpha must be a positive number, got {alpha}")
    if not len(answers):
        raise ValueError("an empty pool says nothing: draw at least one answer")
    rows = [_row(answer) for answer in answers]
    for name, values in (("prompts", {r.prompt for r in rows}), ("horizons", {r.horizon for r in rows})):
        if len(values) > 1:
            raise ValueError(f"a pool has one of each, got {len(values)} {name}: {sorted(map(str, values))[:4]}")
    exponents = sorted({r.exponent for r in rows})
    recorded = {r.alpha for r in rows}
    if len([e for e in exponents if e != 1.0]) > 1 or (len(exponents) > 1 and len(recorded) > 1):
        raise ValueError(
            f"pools at exponents {exponents} with logz recorded at {sorted(recorded)} cannot be combined: draw plain "
            "answers with the alpha of the other pool, or ask about one pool at a time"
        )
    logp = np.array([r.logp for r in rows])
    logz = np.array([r.logz for r in rows])
    shares = [(e, sum(r.exponent == e for r in rows) / len(rows)) for e in exponents]
    # of plain answers alone logz is not needed: at exponent 1 it is 0
    densities = [math.log(share) + (logp if e == 1.0 else e * logp - logz) for e, share in shares]
    log_w = alpha * logp - np.logaddexp.reduce(np.stack(densities), axis=0)
    top = log_w.max()
    if not np.isfinite(top):
        raise ValueError("every answer of the pool has probability 0 under the model: nothing can be reweighted")
    w = np.exp(log_w - top)
    total = w.sum()
    return Reweighted(alpha, w / total, float(total**2 / (w @ w)), float(top + np.log(total / len(w))))


@dataclass(frozen=True)
class Vote:
    """The answer that a pool's votes go to."""

    answer: Hashable
    share: float  #: of all votes, those for no answer included
    shares: Mapping[Hashable, float]


def vote(
    answers: Sequence[Any], answer_of: Callable[[Any], Hashable | None], weights: Sequence[float] | None = None
) -> Vote:
    """The answer with the largest share of the votes; ties go to the one that came first.

    Args:
        answers: Of one prompt.
        answer_of: What an answer votes for; None abstains.
        weights: Of the votes; None: equal. ``Reweighted.weights`` and ``rank_weights`` are two others.
    """
    if not len(answers):
        raise ValueError("an empty pool has no vote")
    shares = _masses(answers, answer_of, weights)[1]
    best = max(shares, key=shares.__getitem__) if shares else None
    return Vote(best, shares.get(best, 0.0), shares)


@dataclass(frozen=True)
class PoweredAnswer:
    """An answer drawn in proportion to the γ-th power of its mass, and one of those that gave it.

    It is a single draw, not a vote: its accuracy stands beside that of other single draws.
    """

    answer: Hashable  #: None where nobody answers
    index: int | None  #: of the chosen one among the answers of the pool
    probability: float  #: that of this answer to be drawn
    shares: Mapping[Hashable, float]  #: of every answer, before the power; those for no answer are left out


def answer_power(
    answers: Sequence[Any],
    answer_of: Callable[[Any], Hashable | None],
    weights: Sequence[float] | None = None,
    *,
    gamma: float = 2.0,
    seed: int = 0,
) -> PoweredAnswer:
    """Draw an answer a with probability ∝ μ̂(a)^γ, then one of those that gave it, by weight. No model is called.

    μ̂(a) is the weight of all that answer a: with weights of p^α it estimates that target's own mass of a, which p^α
    splits over the ways to get there. Consistent in the number of answers; γ → ∞ is ``vote``.

    Args:
        answers: Of one prompt.
        answer_of: What an answer says, None for nothing; ``fastpower.evaluate.grading.answer_of`` has some.
        weights: Of the answers; None: equal. ``Reweighted.weights`` and ``island_weights`` are others.
        gamma: γ > 0, on top of what the weights stand for.
        seed: Of the draw: the same seed, pool and γ give the same answer.

    Raises:
        ValueError: An empty pool, weights or a γ that are none.
    """
    if not len(answers):
        raise ValueError("an empty pool has no answer to draw: draw at least one")
    if not (gamma > 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be a finite number > 0, got {gamma}; 1 keeps the pool's own law")
    choices, shares = _masses(answers, answer_of, weights)
    alive = [(choice, share) for choice, share in shares.items() if share > 0]
    if not alive:
        return PoweredAnswer(None, None, 0.0, shares)
    power = gamma * np.log([share for _, share in alive])
    law = np.exp(power - np.logaddexp.reduce(power))
    key = derive(seed, "answer power")
    chosen = select(law, uniform(key, 0, Purpose.ANSWER))
    answer = alive[chosen][0]
    own = np.array([mass if choice == answer else 0.0 for choice, mass in choices])
    index = select(own / own.sum(), uniform(key, 0, Purpose.SELECT))
    return PoweredAnswer(answer, index, float(law[chosen]), shares)


def island_weights(answers: Sequence[Any]) -> Array:
    """Weights of answers that are each one draw of an independent population: Ẑ_r / Σ Ẑ, never equal.

    Args:
        answers: Of ``smc``, ``marginal`` or another method that reports ``log_z``, of one prompt. A population without
            an answer has weight 0.

    Raises:
        ValueError: An empty pool, an answer without ``log_z``, or none with any weight.
    """
    if not len(answers):
        raise ValueError("an empty pool has no weights: draw at least one answer")
    log_z = []
    for i, answer in enumerate(answers):
        found = _field(answer, "diagnostics")
        if "log_z" not in found:
            method = _field(answer, "method")
            raise ValueError(f"answer {i} of {method!r} has no log_z: island weights are for populations such as smc")
        log_z.append(-math.inf if found["log_z"] is None else float(found["log_z"]))
    values = np.array(log_z)
    if not np.isfinite(values.max()):
        raise ValueError("no population of the pool has an answer with weight: nothing can be weighted")
    weights: Array = np.exp(values - np.logaddexp.reduce(values))
    return weights


def _masses(
    answers: Sequence[Any], answer_of: Callable[[Any], Hashable | None], weights: Sequence[float] | None
) -> tuple[list[tuple[Hashable | None, float]], dict[Hashable, float]]:
    """What everyone answers with their normalised weight, and the sum of weights of every answer."""
    masses = np.full(len(answers), 1.0) if weights is None else np.asarray(weights, np.float64)
    if masses.shape != (len(answers),) or not np.all(masses >= 0) or not masses.sum() > 0:
        raise ValueError(f"weights must be {len(answers)} numbers ≥ 0 that are not all 0")
    choices = [(answer_of(answer), float(mass)) for answer, mass in zip(answers, masses / masses.sum(), strict=True)]
    shares: dict[Hashable, float] = {}
    for choice, mass in choices:
        if choice is not None:
            shares[choice] = shares.get(choice, 0.0) + mass
    return choices, shares


def rank_weights(answers: Sequence[Any], *, middle: float = 0.75, steepness: float = 1.0) -> Array:
    """Weights that use only the order of log p within the pool: robust where p^alpha's weights collapse.

    u_i is the rank of log p in (0, 1] (1: the likeliest); r_i = exp(β (1 − (1 − min(u_i/m, 1))²)), clipped to
    [0.75, 17].
    """
    logp = np.array([_field(answer, "logp") for answer in answers], np.float64)
    ranks = (np.argsort(np.argsort(logp, kind="stable"), kind="stable") + 1) / len(logp)
    rise = 1.0 - np.minimum(ranks / middle, 1.0)
    return np.asarray(np.clip(np.exp(steepness * (1.0 - rise**2)), 0.75, 17.0), np.float64)


@dataclass(frozen=True)
class _Row:
    prompt: str
    horizon: int
    exponent: float  # of the law that the answer was drawn from
    alpha: float  # at which logz was recorded
    logp: float
    logz: float


def _row(answer: Any) -> _Row:
    method = str(_field(answer, "method")).partition("(")[0]
    alpha = float(_field(answer, "alpha"))
    if method not in ("plain", "low_temperature"):
        raise ValueError(
            f"answers of {method!r} are not independent draws of a known density: reweighting takes plain and "
            "low_temperature"
        )
    return _Row(
        str(_field(answer, "prompt_id")),
        int(_field(answer, "max_new_tokens")),
        1.0 if method == "plain" else alpha,
        alpha,
        float(_field(answer, "logp")),
        float(np.sum(_field(answer, "token_logz"))),
    )


def _field(answer: Any, name: str) -> Any:
    return answer[name] if isinstance(answer, Mapping) else getattr(answer, name)
