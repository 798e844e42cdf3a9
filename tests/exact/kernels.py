"""Transition matrices and laws of the other samplers, by enumeration. Nothing here calls a sampler."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from .enumeration import PROMPT, Answer, Enumeration

Law = Callable[[np.ndarray, int], np.ndarray]


def multiple_try_matrix(
    space: Enumeration, cut_probabilities: Law, tries: Callable[[float], int], *, weight_error: float = 1.0
) -> np.ndarray:
    """P(x, y) of one multiple-try move. ``tries`` maps the entropy at the cut to K; weight_error ≠ 1 spoils it."""
    n = len(space.answers)
    matrix = np.zeros((n, n))
    entropies = {x: space.entropy(x) for x in space.answers}
    laws = {x: cut_probabilities(entropies[x], space.horizon) for x in space.answers}
    for i, x in enumerate(space.answers):
        for m in range(len(x)):
            if laws[x][m] == 0.0:
                continue
            k = tries(float(entropies[x][m]))
            tails = [y for y in space.answers if len(y) > m and y[:m] == x[:m]]
            q = {y: math.exp(space.log_q(y, m)) for y in tails}
            w = {}
            for y in tails:
                ratio = laws[y][m] / laws[x][m]
                w[y] = (
                    math.exp(weight_error * (space.log_z_sum(y, m) - space.log_z_sum(x, m))) * ratio
                    if ratio > 0
                    else 0.0
                )
            inside = space.log_potential.get(x, 0.0) > -math.inf
            phi = {y: math.exp(space.log_potential.get(y, 0.0)) for y in tails}
            if inside:
                w = {y: w[y] * phi[y] / phi[x] for y in tails}
            base = w
            for draw in itertools.product(tails, repeat=k):
                probability = laws[x][m] * math.prod(q[y] for y in draw)
                if not inside and any(phi[y] > 0 for y in draw):  # x is no state of the target: go where there is one
                    total = sum(base[y] * phi[y] for y in draw)
                    for y in draw:
                        matrix[i, space.index[y]] += probability * base[y] * phi[y] / total
                    continue
                total = sum(w[y] for y in draw)
                if total == 0.0:
                    matrix[i, i] += probability
                    continue
                for j, y in enumerate(draw):
                    reference = 1.0 + sum(w[z] for h, z in enumerate(draw) if h != j)
                    accept = min(1.0, total / reference)
                    matrix[i, space.index[y]] += probability * w[y] / total * accept
                    matrix[i, i] += probability * w[y] / total * (1.0 - accept)
    return matrix


def swap_matrix(low: Enumeration, high: Enumeration) -> np.ndarray:
    """Exchange of two rungs on the joint space (low answer, high answer)."""
    n = len(low.answers)
    matrix = np.zeros((n * n, n * n))
    gap = high.alpha - low.alpha
    for a, x in enumerate(low.answers):
        for b, y in enumerate(low.answers):
            accept = min(1.0, math.exp(min(0.0, gap * (low.logp[x] - low.logp[y]))))
            matrix[a * n + b, b * n + a] += accept
            matrix[a * n + b, a * n + b] += 1.0 - accept
    return matrix


def systematic_ancestors(log_weights: np.ndarray) -> list[tuple[float, tuple[int, ...]]]:
    """Every outcome of systematic resampling with its probability, by cutting u ∈ (0, 1) where ancestors change."""
    n = len(log_weights)
    w = np.exp(log_weights - log_weights.max())
    cumulative = np.cumsum(w / w.sum())
    cuts = {0.0, 1.0} | {float(n * c - k) for c in cumulative for k in range(n) if 0.0 < n * c - k < 1.0}
    points = sorted(cuts)
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for left, right in itertools.pairwise(points):
        u = (left + right) / 2
        indices = np.searchsorted(cumulative, (np.arange(n) + u) / n, side="right").clip(0, n - 1)
        found[tuple(int(i) for i in indices)] += right - left
    return [(probability, ancestors) for ancestors, probability in found.items()]


def smc_law(
    space: Enumeration,
    particles: int,
    threshold: float,
    *,
    schedule: dict[int, float] | None = None,
    twist: Callable[[Answer], float] | None = None,
    mistake: str = "",
) -> tuple[dict[Answer, float], float]:
    """Exact law of the answer and E[Ẑ] of SMC with blocks of one token, look-ahead weights, systematic resampling.

    schedule: position → exponent in force from there on (default: alpha from 0). twist: unfinished answer → log ψ,
    finite; the space's potential takes its place at the end. mistake: "no_division" keeps the twist within the weights,
    "no_reset" keeps the weights after resampling, "no_boundary" omits the weight of a change of exponent.
    """
    decoder, horizon = space.decoder, space.horizon
    eos = decoder.eos_ids
    schedule = schedule or {0: space.alpha}

    def exponent(t: int) -> float:
        return schedule[max(p for p in schedule if p <= t)] if t < horizon else space.alpha

    def conditional(x: Answer) -> np.ndarray:
        return decoder.log_probabilities((*PROMPT, *x))

    def logp(x: Answer) -> float:
        return sum(float(conditional(x[:t])[x[t]]) for t in range(len(x)))

    def logz(x: Answer, a: float) -> float:
        return float(np.logaddexp.reduce(a * conditional(x)))

    law: dict[Answer, float] = defaultdict(float)
    evidence = 0.0

    def ended(x: Answer) -> bool:
        return bool(x) and x[-1] in eos

    def log_phi(x: Answer) -> float:
        return space.log_potential.get(x, 0.0)

    def log_psi(x: Answer) -> float:
        if twist is None or not x:
            return 0.0
        return log_phi(x) if ended(x) else twist(x)

    def finish(state, log_w, log_z, probability, a, before):
        nonlocal evidence
        log_w = log_w + (space.alpha - a) * np.array([logp(x) for x in state]) * (mistake != "no_boundary")
        within = np.array([log_psi(x) for x in before]) * (mistake != "no_division")
        if any(log_phi(x) > -math.inf for x in state):
            log_w = log_w + np.array([log_phi(x) for x in state]) - within
        else:
            log_z, log_w = -math.inf, log_w - within
        w = np.exp(log_w)
        evidence += probability * math.exp(log_z) * float(w.mean())
        for x, share in zip(state, w / w.sum(), strict=True):
            law[x] += probability * share

    def step(state, log_w, log_z, probability, t):
        """Weights hold everything before drawing token t."""
        a = exponent(t)
        options = []
        for x in state:
            if ended(x):
                options.append([(1.0, x)])
                continue
            q = a * conditional(x)
            q = np.exp(q - np.logaddexp.reduce(q))
            options.append([(float(q[v]), (*x, v)) for v in range(len(q)) if q[v] > 0])
        for choice in itertools.product(*options):
            p = probability * math.prod(weight for weight, _ in choice)
            after = tuple(x for _, x in choice)
            weights = log_w.copy()
            b = exponent(t + 1) if t + 1 < horizon else space.alpha
            if mistake != "no_boundary":
                weights += (b - a) * np.array([logp(x) for x in after])
            if t + 1 == horizon or all(ended(x) for x in after):
                finish(after, weights, log_z, p, b, state)
                continue
            weights += np.array([0.0 if ended(x) else logz(x, b) for x in after])
            if twist is not None:
                weights += np.array([log_psi(y) - log_psi(x) for x, y in zip(state, after, strict=True)])
            w = np.exp(weights - weights.max())
            if w.sum() ** 2 / (w**2).sum() < threshold * len(after):
                banked = log_z + float(np.logaddexp.reduce(weights)) - math.log(len(after))
                for share, ancestors in systematic_ancestors(weights):
                    fresh = weights[list(ancestors)] if mistake == "no_reset" else np.zeros(len(after))
                    step(tuple(after[i] for i in ancestors), fresh, banked, p * share, t + 1)
            else:
                step(after, weights, log_z, p, t + 1)

    first = logz((), exponent(0))
    step(((),) * particles, np.full(particles, first), 0.0, 1.0, 0)
    return dict(law), evidence
