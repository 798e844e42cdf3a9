"""Exact laws on enumerable toy models: transition matrices, finite-N laws, and the G-test against real runs.

Written from the mathematics alone: nothing here calls a sampler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from fastpower.decoders.toy import ToyDecoder, random_logits

PROMPT = (0,)
Answer = tuple[int, ...]


def toy_models() -> dict[str, ToyDecoder]:
    """With EOS, without, with a deterministic stretch, with a zero-probability token, with two modes."""
    return {
        "eos": ToyDecoder(random_logits(3, 1, eos=2, eos_bias=0.3), 3, [2]),
        "no_eos": ToyDecoder(random_logits(3, 2), 3, []),
        "deterministic": ToyDecoder(random_logits(3, 3, eos=2, deterministic=(2,)), 3, [2]),
        "zero": ToyDecoder(random_logits(3, 4, eos=2, forbidden={2: 0}), 3, [2]),
        "modes": ToyDecoder(random_logits(3, 5, eos=2, modes=2.0, scale=1.0), 3, [2]),
    }


def branches(cls: type[ToyDecoder] = ToyDecoder) -> ToyDecoder:
    """One first token opens a wide choice, the other none: weights and cut laws of answers depend on it strongly."""
    off = -math.inf

    def logits(prefix: Sequence[int]) -> list[float]:
        if len(prefix) == 1:
            return [0.0, 0.0, off, off, off]
        return [off, 0.0, 0.1, -0.1, 0.2] if prefix[1] == 0 else [off, off, 0.0, off, off]

    return cls(logits, 5, [])


class Enumeration:
    """Everything about one model, prompt, exponent and horizon, by brute force in float64."""

    def __init__(self, decoder: ToyDecoder, alpha: float, horizon: int) -> None:
        self.decoder, self.alpha, self.horizon = decoder, alpha, horizon
        self.condition(decoder.records(PROMPT, horizon), {})

    def condition(self, logp: dict[Answer, float], log_potential: dict[Answer, float]) -> None:
        """Take these answers, and log φ where it is not 0."""
        self.logp, self.log_potential = logp, log_potential
        self.answers = list(self.logp)
        self.index = {x: i for i, x in enumerate(self.answers)}
        weights = np.array([self.alpha * self.logp[x] + log_potential.get(x, 0.0) for x in self.answers])
        self.log_norm = float(np.logaddexp.reduce(weights))  # log Z
        self.pi = np.exp(weights - self.log_norm)

    def conditional(self, prefix: Sequence[int]) -> np.ndarray:
        return self.decoder.log_probabilities((*PROMPT, *prefix))

    def logz(self, prefix: Sequence[int]) -> float:
        z = self.alpha * self.conditional(prefix)
        return float(np.logaddexp.reduce(z))

    def entropy(self, x: Answer) -> np.ndarray:
        rows = []
        for t in range(len(x)):
            logp = self.conditional(x[:t])
            p = np.exp(logp)
            rows.append(float(-(p[p > 0] * logp[p > 0]).sum()))
        return np.array(rows)

    def log_q(self, x: Answer, start: int) -> float:
        """log q(x_≥start | x_<start), q ∝ p^alpha token by token."""
        return sum(self.alpha * float(self.conditional(x[:t])[x[t]]) - self.logz(x[:t]) for t in range(start, len(x)))

    def log_z_sum(self, x: Answer, start: int, stop: int | None = None) -> float:
        return sum(self.logz(x[:t]) for t in range(start, len(x) if stop is None else stop))


def transition_matrix(
    space: Enumeration,
    cut_probabilities: Callable[[np.ndarray, int], np.ndarray],
    log_ratio: Callable[[Enumeration, Answer, Answer, int], float] | None = None,
    *,
    proposable: Callable[[Answer, Answer, int], bool] = lambda x, y, m: True,
) -> np.ndarray:
    """P(x, y) of one Metropolis–Hastings move, summed over cuts. ``log_ratio`` defaults to the exact one."""
    n = len(space.answers)
    matrix = np.zeros((n, n))
    laws = {x: cut_probabilities(space.entropy(x), space.horizon) for x in space.answers}
    if log_ratio is None:

        def log_ratio(space: Enumeration, x: Answer, y: Answer, m: int) -> float:
            return space.log_z_sum(y, m) - space.log_z_sum(x, m) + math.log(laws[y][m]) - math.log(laws[x][m])

    for i, x in enumerate(space.answers):
        for m in range(len(x)):
            if laws[x][m] == 0.0:
                continue
            for j, y in enumerate(space.answers):
                if len(y) <= m or y[:m] != x[:m] or i == j or laws[y][m] == 0.0 or not proposable(x, y, m):
                    continue
                accept = min(1.0, math.exp(min(0.0, log_ratio(space, x, y, m))))
                matrix[i, j] += laws[x][m] * math.exp(space.log_q(y, m)) * accept
        matrix[i, i] = 1.0 - matrix[i].sum()
    return matrix


def extension(small: Enumeration | None, large: Enumeration, mass: np.ndarray) -> np.ndarray:
    """Law of answers at the larger horizon when every unfinished one is extended with q."""
    result = np.zeros(len(large.answers))
    eos = large.decoder.eos_ids
    for x, weight in zip(small.answers if small else [()], mass, strict=True):
        for j, y in enumerate(large.answers):
            if x and x[-1] in eos:
                result[j] += weight if y == x else 0.0
            elif y[: len(x)] == x and len(y) > len(x):
                result[j] += weight * math.exp(large.log_q(y, len(x)))
    return result


def finite_law(
    decoder: ToyDecoder,
    alpha: float,
    horizons: Sequence[int],
    matrix: Callable[[Enumeration], np.ndarray],
    moves: int,
    *,
    skipped: set[Answer] | None = None,
) -> tuple[Enumeration, np.ndarray]:
    """The exact law of the staged sampler's answer after N moves per stage: it need not have converged.

    skipped: unfinished answers that get no moves at a warm-up stage (filled by ``matrix`` before it is used).
    """
    small, mass = None, np.ones(1)
    finished: Counter[Answer] = Counter()  # answers that ended in an earlier stage wait for the last one
    for horizon in horizons:
        space = Enumeration(decoder, alpha, horizon)
        law = extension(small, space, mass)
        last = horizon == horizons[-1]
        if last:
            for x, weight in finished.items():
                law[space.index[x]] += weight
        else:
            for i, x in enumerate(space.answers):
                if x[-1] in decoder.eos_ids:
                    finished[x] += law[i]
                    law[i] = 0.0
        power = np.linalg.matrix_power(matrix(space), moves)
        for x in skipped or () if not last else ():
            if x in space.index:
                power[space.index[x]] = np.eye(len(power))[space.index[x]]
        law = law @ power
        if not last:
            for i, x in enumerate(space.answers):
                if x[-1] in decoder.eos_ids:  # ended during this stage's moves: on to the last stage
                    finished[x] += law[i]
                    law[i] = 0.0
        small, mass = space, law
    return small, mass


def g_test(counts: Counter[Answer], answers: Sequence[Answer], law: np.ndarray) -> float:
    """p-value of the G-test of observed answers against a law; cells expected below 5 are pooled."""
    unexpected = set(counts) - set(answers)
    if unexpected:
        return 0.0
    total = sum(counts.values())
    observed = np.array([counts[x] for x in answers], float)
    expected = law * total
    if (observed[expected <= 0] > 0).any():
        return 0.0
    big = expected >= 5
    observed = np.append(observed[big], observed[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    if expected[-1] < 1.0:
        if observed[-1] > 12:
            return 0.0
        observed, expected = observed[:-1], expected[:-1]
    positive = observed > 0
    g = 2.0 * float((observed[positive] * np.log(observed[positive] / expected[positive])).sum())
    return float(stats.chi2.sf(max(g, 0.0), len(observed) - 1))
