"""Transition matrices of moves with K tries, by enumeration: to the end, or with a kept tail. Calls no sampler."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from fastpower.samplers.cuts import CutLaw

from .enumeration import Answer, Enumeration

MISTAKES = ("tail left out", "law of the full length", "end in the window accepted", "reference set wrong")


def tries_matrix(
    space: Enumeration,
    cut: CutLaw,
    tries: int | Callable[[float], int],
    window: int | None = None,
    *,
    mistake: str = "",
) -> np.ndarray:
    """P(x, y) of one move with K tries.

    Args:
        space: The model.
        cut: The cut law.
        tries: K, or K as a function of the entropy at the cut.
        window: Tokens redrawn; None: to the end.
        mistake: One of MISTAKES.
    """
    matrix = np.zeros((len(space.answers), len(space.answers)))
    for (m, *_), members in blocks(space, window).items():
        k = tries if isinstance(tries, int) else tries(float(space.entropy(members[0])[m]))
        weight, q, law = [], [], []
        for y in members:
            end = len(y) if window is None else m + window
            visible = space.entropy(y)[: len(y) if window is None else len(y) - window]
            full = space.entropy(y) if mistake == "law of the full length" else visible
            law.append(cut.probabilities(visible, space.horizon)[m])
            q.append(math.exp(log_q(space, y, m, end)))
            tail = 0.0 if mistake == "tail left out" else sum(logp(space, y, t) for t in range(end, len(y)))
            reverse = cut.probabilities(full, space.horizon)[m]
            weight.append(math.exp(space.log_z_sum(y, m, end) + space.alpha * tail) * reverse)
        targets = [space.index[y] for y in members]
        if window is not None:  # windows with an end of sequence: weight 0, or, by mistake, a shorter answer
            ended = [
                y
                for y in space.answers
                if y[:m] == members[0][:m] and m < len(y) <= m + window and y[-1] in space.decoder.eos_ids
            ]
            for y in ended:
                q.append(math.exp(log_q(space, y, m, len(y))))
                accepted = mistake == "end in the window accepted"
                weight.append(math.exp(space.log_z_sum(y, m)) / len(y) if accepted else 0.0)
                targets.append(space.index[y])
        _add(matrix, len(members), np.array(law), np.array(weight), np.array(q), targets, k, mistake)
    return matrix + np.diag(1.0 - matrix.sum(1))


def _add(matrix, states, law, weight, q, targets, k, mistake):
    """Moves between the states that one cut connects; what is left over stays."""
    draws = np.array(list(itertools.combinations_with_replacement(range(len(q)), k)))
    ways = np.array([_orders(tuple(draw)) for draw in draws.tolist()], float)
    probability = ways * q[draws].prod(1)
    keep = probability > 0.0
    draws, probability = draws[keep], probability[keep]
    for i in range(states):
        if law[i] == 0.0 or weight[i] == 0.0:
            continue
        w = (weight / weight[i])[draws]
        total = w.sum(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0.0, w / total, 0.0)
        reference = np.maximum(total - w, 0.0) + 1.0
        accept = np.minimum(1.0, w if mistake == "reference set wrong" else total / reference)
        row = np.zeros(len(q))
        np.add.at(row, draws, law[i] * probability[:, None] * share * accept)
        for j, value in enumerate(row):
            if targets[j] != targets[i]:
                matrix[targets[i], targets[j]] += value


def _orders(draw: tuple[int, ...]) -> int:
    """Orders in which these tries can have been drawn."""
    return math.factorial(len(draw)) // math.prod(math.factorial(draw.count(v)) for v in set(draw))


def blocks(space: Enumeration, window: int | None) -> dict[tuple, list[Answer]]:
    """Answers that one cut connects: (cut, what precedes it, what is kept behind) → the answers."""
    found: dict[tuple, list[Answer]] = defaultdict(list)
    for x in space.answers:
        if window is None:
            for m in range(len(x)):
                found[m, x[:m]].append(x)
        else:
            for m in range(len(x) - window):
                found[m, x[:m], len(x), x[m + window :]].append(x)
    return found


def logp(space: Enumeration, x: Answer, t: int) -> float:
    """log p of the token at t."""
    return float(space.conditional(x[:t])[x[t]])


def log_q(space: Enumeration, x: Answer, start: int, stop: int) -> float:
    """log q of the tokens start … stop − 1."""
    return space.alpha * sum(logp(space, x, t) for t in range(start, stop)) - space.log_z_sum(x, start, stop)
