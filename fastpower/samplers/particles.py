"""A population of growing answers with weights: what every sequential Monte Carlo sampler here is made of.

Per token the weight of a particle grows by logz_t = log Σ_v p(v | x_<t)^α, whatever token is drawn: it is known before
the draw. So each block ends with the logz of the next position already in the weights, and resampling sees one step
ahead for free. Finished particles have increment 0 and are not forwarded.

Raising the exponent from a to b at position t multiplies the weight of every particle, finished ones included, by
p(x_<t)^{b−a}. The mean weight at every resampling is carried in ``log_evidence``: E[Ẑ] = Z.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastpower.chains.chain import Chain
from fastpower.chains.record import Array, Record
from fastpower.chains.requests import Suffix
from fastpower.kernels import resample
from fastpower.potential import Potential
from fastpower.random import Purpose, uniforms
from fastpower.samplers.tilt import log_twists, weighed
from fastpower.target import PowerTarget

SCHEMES = ("systematic", "stratified", "residual", "multinomial")


@dataclass
class Particles:
    """N answers at a common position, the log-weights since the last resampling, and log Ẑ so far."""

    records: list[Record]
    log_weights: Array  #: (N,)
    log_evidence: float = 0.0
    position: int = 0  #: tokens every unfinished answer has
    log_twists: Array | None = None  #: (N,) log ψ within the weights, where the target's potential has a twist
    lost: bool = False  #: no particle has φ > 0, or none had ψ > 0: Ẑ is 0, and the weights are those of p^α
    paid: bool = False  #: the weights already hold logz of ``position`` for unfinished answers
    trace: list[dict[str, Any]] = field(default_factory=list)
    #: (N,) logz of the next position at the exponent there, as far as the weights hold it
    ahead: Array = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def alive(self) -> list[int]:
        """Particles that have not ended."""
        return [i for i, record in enumerate(self.records) if not record.ended]

    @property
    def ess(self) -> float:
        """Effective sample size of the current weights."""
        return effective_size(self.log_weights)

    def log_z(self) -> float:
        """log Ẑ, the current weights included; −inf where no particle has a weight."""
        return -math.inf if self.lost else self.evidence()

    def evidence(self) -> float:
        """log Ẑ by the weights there are."""
        return self.log_evidence + float(np.logaddexp.reduce(self.log_weights)) - math.log(len(self))

    def resample(self, ancestors: Sequence[int]) -> None:
        """Replace every particle by its ancestor, bank the mean weight, reset the weights."""
        self.log_evidence = self.evidence()
        if self.log_twists is not None:
            self.log_twists = self.log_twists[list(ancestors)]
        self.log_weights = np.zeros(len(self))
        self.ahead = self.ahead[list(ancestors)] if len(self.ahead) else self.ahead
        # All survivors are taken over before the dead are dropped: pages are shared, never copied.
        self.records = [self.records[i] for i in ancestors]

    def draw(self, u: float) -> Record:
        """One particle from the current weights."""
        w = np.exp(self.log_weights - self.log_weights.max())
        cumulative = np.cumsum(w)
        index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
        return self.records[min(index, len(self) - 1)]


def ancestors(log_weights: Array, scheme: str, key: int, step: int) -> list[int]:
    """Ancestor indices (N,) by the given scheme, keyed by (key, step)."""
    n = len(log_weights)
    count = 1 if scheme == "systematic" else n
    u = torch.from_numpy(uniforms(key, step * n, count, Purpose.RESAMPLE))
    result = resample(torch.from_numpy(log_weights), u, scheme=scheme)
    indices: list[int] = result.index.tolist()
    return indices


def effective_size(log_weights: Array) -> float:
    """1 / Σ W²; 0 if all weights are 0."""
    top = float(log_weights.max())
    if top == -math.inf:
        return 0.0
    w = np.exp(log_weights - top)
    return float(w.sum() ** 2 / (w**2).sum())


def exponents_of(target: PowerTarget) -> tuple[float, ...]:
    """Every exponent a run of ``target`` uses; the target's own comes first."""
    return tuple(dict.fromkeys((target.alpha, target.exponent(0), *(a for _, a in target.schedule))))


def block_ends(target: PowerTarget, block: int) -> list[int]:
    """Positions at which the population stops: every ``block`` tokens and wherever the exponent changes."""
    changes = {position for position, _ in target.schedule if 0 < position < target.horizon}
    return sorted(changes | set(range(block, target.horizon, block)) | {target.horizon})


def advance(
    chain: Chain,
    particles: Particles,
    target: PowerTarget,
    end: int,
    exponents: tuple[float, ...],
    *labels: int | str,
    fixed: Record | None = None,
    peek: bool = True,
) -> Generator[Any, Any, None]:
    """Grow every unfinished particle to position ``end`` and bring the weights up to date, look-ahead included.

    Args:
        chain: What runs.
        particles: The population; changed.
        target: Whose exponents the weights follow.
        end: Position.
        exponents: Those of the statistics.
        *labels: Of the stream.
        fixed: Particle 0 follows this answer (conditional SMC).
        peek: Look one position ahead (costs one forward a block).
    """
    start, alpha = particles.position, target.exponent(particles.position)
    column = exponents.index(alpha)
    last = end >= target.horizon
    alive = [i for i in particles.alive if fixed is None or i != 0]
    tickets = [
        chain.start(
            chain.onward(
                particles.records[i],
                end,
                chain.key(*labels, "particle", i),
                alpha,
                exponents,
                peek=peek and not last,
            )
        )
        for i in alive
    ]
    suffixes: list[Suffix] = (yield tickets) if tickets else []
    following: dict[int, Array] = {}
    for i, suffix in zip(alive, suffixes, strict=True):
        particles.records[i] = particles.records[i].spliced(start, suffix)
        if suffix.next_logz is not None:
            following[i] = suffix.next_logz
    if fixed is not None and not particles.records[0].ended:
        particles.records[0] = fixed.first(end)
        if peek and len(fixed) > end:
            following[0] = fixed.logz[end]
        alive = [0, *alive]
    for i in alive:
        logz = particles.records[i].logz[start:, column]
        particles.log_weights[i] += float(logz[1:].sum() if particles.paid else logz.sum())
    particles.position = end
    after = target.alpha if last else target.exponent(end)
    if after != alpha:
        for i, record in enumerate(particles.records):
            particles.log_weights[i] += (after - alpha) * record.total_logp
    particles.ahead = np.zeros(len(particles))
    for i, logz in following.items():
        particles.ahead[i] = logz[exponents.index(after)]
        particles.log_weights[i] += float(particles.ahead[i])
    particles.paid = peek and not last


def twist(chain: Chain, particles: Particles, potential: Potential) -> Generator[Any, Any, None]:
    """Exchange the twist within the weights for that of the particles as they stand now."""
    values = yield from log_twists(chain, potential, particles.records)
    exchange(particles, values)


def tilt(chain: Chain, particles: Particles, potential: Potential | None) -> Generator[Any, Any, None]:
    """At the end: the potential itself in place of the twist, so that E[Ẑ] = Σ p^α φ."""
    if potential is None:
        return
    records = yield from weighed(chain, potential, particles.records)
    particles.records = [record for record in records if record is not None]
    exchange(particles, np.array([record.log_potential for record in particles.records], float))


def exchange(particles: Particles, values: Array) -> None:
    """Put ``values``, one log ψ or log φ a particle, in place of those within the weights.

    A particle whose twist was 0 stays dead. Where none is left the population is lost, and goes on by p^α.
    """
    before = np.zeros(len(particles)) if particles.log_twists is None else particles.log_twists
    alive = before > -math.inf
    weights = np.full(len(particles), -math.inf)
    weights[alive] = particles.log_weights[alive] + values[alive] - before[alive]
    if not (weights > -math.inf).any():
        particles.lost = True
        values = np.zeros(len(particles))
        weights[alive] = particles.log_weights[alive] - before[alive]
    particles.log_weights, particles.log_twists = weights, values


def shares(log_z: Array) -> Array:
    """(R,) with what probability each of R populations gives the answer: ∝ Ẑ; alike where all are lost."""
    if not (log_z > -math.inf).any():
        return np.full(len(log_z), 1.0 / len(log_z))
    found: Array = np.exp(log_z - np.logaddexp.reduce(log_z))
    return found


def told(log_z: float) -> float | None:
    """log Ẑ for JSON, which has no −inf: None where Ẑ is 0."""
    return log_z if log_z > -math.inf else None


def catch_up(particles: Particles, target: PowerTarget) -> None:
    """All particles ended before the exponent reached alpha: weight them for what was missing."""
    if particles.position < target.horizon:
        missing = target.alpha - target.exponent(particles.position)
        particles.log_weights += missing * np.array([record.total_logp for record in particles.records])
