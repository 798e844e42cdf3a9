"""Cut laws λ(m | x): where a Markov-chain move cuts the current answer.

A move from x cuts at m ~ λ(· | x), keeps x_<m and draws a new suffix. If λ depends on x the acceptance ratio carries
λ(m | y) / λ(m | x); dropping it is one of the published mistakes. A law that can never cut some position may be
reducible, so every entropy-driven law mixes in ``epsilon`` of the uniform one.

To add a law, subclass ``CutLaw`` and write ``probabilities``; ``bound`` is optional and only saves work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastpower.chains.record import Array

Bound = Callable[[float], float]


class CutLaw:
    """A law of cut positions given an answer's entropies."""

    @property
    def irreducible(self) -> bool:
        """Whether moves can lead from any answer to any other.

        A law of which that is not known says False, and results are not marked exact.
        """
        return True

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        """(n,) λ(m | x) for an answer with entropies (n,) nats, n ≥ 1. A sum below 1 leaves the rest to no move."""
        raise TypeError(f"{type(self).__name__} must define probabilities(entropy, horizon)")

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        """What rejects early: an upper bound of log λ(cut | finished answer), from what has grown of it.

        The answer starts with ``entropy``; the result is called with the entropy of each further position.
        """
        return lambda _: 0.0

    def log_probability(self, entropy: Array, cut: int, horizon: int) -> float:
        """log λ(cut | x); −inf where the law cannot cut."""
        value = float(self.probabilities(entropy, horizon)[cut])
        return math.log(value) if value > 0.0 else -math.inf

    def draw(self, entropy: Array, horizon: int, u: float) -> int | None:
        """The cut that the uniform ``u`` selects; None is a move that stays."""
        cumulative = np.cumsum(self.probabilities(entropy, horizon))
        cut = int(np.searchsorted(cumulative, u, side="right"))
        if cut < len(entropy):
            return cut
        # A proper law loses an ulp in its sum: then the last position is meant.
        return len(entropy) - 1 if cumulative[-1] > 1.0 - 1e-9 else None


@dataclass(frozen=True)
class UniformCut(CutLaw):
    """λ(m | x) = 1 / len(x) (Karan & Du, with the length ratio that answers of variable length need)."""

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return np.full(len(entropy), 1.0 / len(entropy))

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        n = len(entropy)

        def step(_: float) -> float:
            nonlocal n
            n += 1
            return -math.log(n)

        return step


@dataclass(frozen=True)
class FixedHorizonCut(CutLaw):
    """λ(m | x) = 1 / horizon: cuts past the end stay where they are, and no ratio is needed."""

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return np.full(len(entropy), 1.0 / horizon)

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        value = -math.log(horizon)
        return lambda _: value


@dataclass(frozen=True)
class EntropyJumpCut(CutLaw):
    """λ(m | x) ∝ max(0, H_m − H_{m−1})^beta, H_{−1} = 0, mixed with ``epsilon`` of the uniform law.

    Entropy-Cut MH (Zhou, Mehrotra, Liu, arXiv 2605.30327), which uses beta = 4. The weight of a position depends on
    what precedes it only, so the ratio of a move is S(x) / S(y) up to the mixture.
    """

    beta: float = 4.0
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta must be a finite number > 0, got {self.beta}")

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        rise = np.maximum(np.diff(entropy, prepend=0.0), 0.0) ** self.beta
        return _mixed(rise, self.epsilon)

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        rise = np.maximum(np.diff(entropy, prepend=0.0), 0.0) ** self.beta
        n, total, last = len(entropy), float(rise.sum()), float(entropy[-1]) if len(entropy) else 0.0
        weight = float(rise[cut]) if cut < n else None  # the position of the cut itself may still be to come

        def step(h: float) -> float:
            nonlocal n, total, last, weight
            rise = max(0.0, h - last) ** self.beta
            weight = rise if weight is None else weight
            n, total, last = n + 1, total + rise, h
            # Nothing has risen so far: it may stay so, and then the law is uniform.
            share = (1.0 - self.epsilon) * weight / total + self.epsilon / n if total > 0.0 else 1.0 / n
            return math.log(share) if share > 0.0 else -math.inf

        return step


@dataclass(frozen=True)
class EntropyThresholdCut(CutLaw):
    """Equal weight for every position within ``window`` of a decision point (entropy ≥ ``threshold`` nats).

    EGPS (Guo et al., arXiv 2606.09926). With a window the weight of a position also depends on what follows it; it is
    recomputed for each answer, so the ratio stays exact. ``epsilon`` of the uniform law is mixed in.
    """

    threshold: float = 0.5
    window: int = 2
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        if not self.threshold >= 0.0:
            raise ValueError(f"threshold must be an entropy ≥ 0 nats, got {self.threshold}")
        if self.window < 0:
            raise ValueError(f"window must be ≥ 0 tokens, got {self.window}")

    @property
    def irreducible(self) -> bool:
        return self.epsilon > 0.0 or self.threshold == 0.0  # else positions below the threshold never change

    def _near(self, entropy: Array) -> NDArray[np.bool_]:
        near = entropy >= self.threshold
        decision = near.copy()
        for shift in range(1, min(self.window, len(entropy) - 1) + 1):
            near[shift:] |= decision[:-shift]
            near[:-shift] |= decision[shift:]
        return near

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return _mixed(self._near(entropy).astype(float), self.epsilon)

    def bound(self, entropy: Array, cut: int, horizon: int) -> Bound:
        # Weights so far only grow in number; the cut's own weight is at most 1.
        n, total = len(entropy), float(self._near(entropy).sum()) if len(entropy) else 0.0

        def step(h: float) -> float:
            nonlocal n, total
            n, total = n + 1, total + (h >= self.threshold)
            return math.log((1.0 - self.epsilon) / total + self.epsilon / n) if total > 0.0 else 0.0

        return step


@dataclass(frozen=True)
class EntropyQuantileCut(CutLaw):
    """Equal weight for positions whose entropy is at least the answer's own ``quantile``.

    The threshold depends on the whole answer: a position eligible in x may not be in y, and then, up to ``epsilon``,
    the move is rejected.
    """

    quantile: float = 0.8
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        if not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile must lie in [0, 1], got {self.quantile}")

    @property
    def irreducible(self) -> bool:
        return self.epsilon > 0.0 or self.quantile == 0.0  # else positions below the quantile may never change

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        return _mixed((entropy >= np.quantile(entropy, self.quantile)).astype(float), self.epsilon)


@dataclass(frozen=True)
class MixtureCut(CutLaw):
    """One law with each probability: λ = Σ_i shares[i] λ_i (the shares are normalised)."""

    laws: tuple[CutLaw, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.laws or len(self.laws) != len(self.shares):
            raise ValueError(f"laws and shares must pair up, got {len(self.laws)} laws and {len(self.shares)} shares")
        if not all(share > 0.0 for share in self.shares):
            raise ValueError(f"shares must be > 0, got {self.shares}")

    @property
    def irreducible(self) -> bool:
        return any(law.irreducible for law in self.laws)  # one way from anywhere to anywhere is enough

    def probabilities(self, entropy: Array, horizon: int) -> Array:
        total = sum(self.shares)
        parts = [
            share / total * law.probabilities(entropy, horizon)
            for law, share in zip(self.laws, self.shares, strict=True)
        ]
        return np.sum(parts, axis=0)  # type: ignore[no-any-return]


def _mixed(weights: Array, epsilon: float) -> Array:
    """weights / Σ weights with ``epsilon`` of the uniform law; uniform where no position has weight."""
    uniform = np.full(len(weights), 1.0 / len(weights))
    total = float(weights.sum())
    return uniform if total <= 0.0 else (1.0 - epsilon) * weights / total + epsilon * uniform


def _check_epsilon(epsilon: float) -> None:
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}; 0 makes positions without weight unreachable")
