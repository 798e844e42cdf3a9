"""Resample–move (Gilks & Berzuini 2001): Metropolis–Hastings moves of particles, weights as they are.

At position t, with exponent a, weighted particles stand for π_t(x) ∝ p(x)^a z(x), z the mass Σ_v p(v | x)^a of the
next position, which the weights already hold (1 for what has ended). A move cuts x anywhere, redraws from there to t
and accepts with the ratio of π_t, so that copies become different answers and E[Ẑ] stays what it is.

That holds where moves are made at fixed positions. Made only after a resampling, which itself depends on the particles,
they are not: given that there was one, particles do not follow π_t, and moving them towards it makes E[Ẑ] wrong.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np

from fastpower.chains.chain import Chain
from fastpower.chains.record import Record
from fastpower.random import Purpose
from fastpower.samplers.particles import Particles


def rejuvenate(
    chain: Chain, particles: Particles, alpha: float, exponents: tuple[float, ...], *labels: int | str
) -> Generator[Any, Any, int]:
    """One move of every particle, all at once; the number of those that were accepted.

    Args:
        chain: What runs.
        particles: Weighted or just resampled; changed.
        alpha: The exponent in force at their position.
        exponents: Those of the statistics.
        *labels: Of the stream.
    """
    column = exponents.index(alpha)
    cuts = [int(chain.uniform(Purpose.CUT, *labels, i) * len(x)) for i, x in enumerate(particles.records)]
    suffixes = yield [
        chain.start(chain.onward(x.first(m), particles.position, chain.key(*labels, i), alpha, exponents, peek=True))
        for i, (x, m) in enumerate(zip(particles.records, cuts, strict=True))
    ]
    accepted = 0
    for i, (m, suffix) in enumerate(zip(cuts, suffixes, strict=True)):
        x, y = particles.records[i], particles.records[i].spliced(m, suffix)
        ahead = 0.0 if suffix.next_logz is None else float(suffix.next_logz[column])
        log_ratio = log_acceptance(x, y, m, column, ahead - particles.ahead[i])
        won = math.log(chain.uniform(Purpose.ACCEPT, *labels, i)) < log_ratio
        chain.moved(won)
        if won:
            particles.records[i], particles.ahead[i] = y, ahead
            accepted += 1
    return accepted


def log_acceptance(x: Record, y: Record, cut: int, column: int, ahead: float) -> float:
    """log of π_t(y) q(x | y) / (π_t(x) q(y | x)), cuts uniform: Σ logz from the cut, the look-ahead, the lengths."""
    log_ratio = float(np.sum(y.logz[cut:, column])) - float(np.sum(x.logz[cut:, column]))
    return log_ratio + ahead + math.log(len(x) / len(y))
