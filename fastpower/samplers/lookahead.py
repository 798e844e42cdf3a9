"""Looking ahead with rollouts: Scalable Power Sampling (SPS) and the auxiliary particle variant (APPS).

SPS is Ji et al., arXiv 2601.21590; APPS is Nguyen et al., arXiv 2605.02427.

The future value of an unfinished answer h is ζ(h) = Σ over continuations of p(continuation | h)^α. M rollouts r of H
tokens from q estimate it without bias up to the cut at H tokens: ζ̂ = mean_r exp(Σ logz), because
α log p(r) − log q(r) = Σ logz. Truncated rollouts and a finite number of candidates make SPS approximate; APPS divides
the twist back out, so its Ẑ stays unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Array, Record
from fastpower.random import Purpose, select
from fastpower.samplers.particles import Particles, advance, ancestors, block_ends, effective_size, exponents_of
from fastpower.samplers.smc import check_population, population_diagnostics
from fastpower.target import PowerTarget


@dataclass(frozen=True)
class Lookahead:
    """SPS, block by block; approximate.

    Attributes:
        candidates: L blocks drawn from q.
        keep: The K of highest log p among them are scored.
        rollouts: M per candidate.
        lookahead: H tokens of each rollout.
        jackknife: Remove the first-order bias of normalising noisy scores.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    block: int = 192
    candidates: int = 32
    keep: int = 8
    rollouts: int = 8
    lookahead: int = 192
    jackknife: bool = True
    method: ClassVar[str] = "sps"

    def __post_init__(self) -> None:
        self.target.stages(self.block)
        for name in ("candidates", "keep", "rollouts", "lookahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.keep > self.candidates:
            raise ValueError(f"keep = {self.keep} exceeds candidates = {self.candidates}")

    def run(self, chain: Chain) -> Run:
        """One answer, grown block by block."""
        x, trace = Record.empty(chain.prompt), Trace()
        for step, end in enumerate(self.target.stages(self.block)):
            if x.ended:
                break
            chain.partial = lambda x=x: Outcome(x, list(trace), exact=False, complete=False)
            start = len(x)
            blocks = yield from grow(chain, [x] * self.candidates, end, self.target.alpha, "candidate", step)
            kept = sorted(blocks, key=lambda block: -block.total_logp)[: self.keep]
            values = yield from future_values(chain, kept, self.target, self.rollouts, self.lookahead, step)
            gain = np.array([block_gain(block, start, self.target.alpha) for block in kept])
            share = choose(gain, values, self.jackknife)
            chosen = select(share, chain.uniform(Purpose.SELECT, "block", step))
            x = kept[chosen]
            trace.append({"position": len(x), "share": float(share[chosen]), "logp": x.total_logp})
        return Outcome(x, trace, exact=False)


@dataclass(frozen=True)
class AuxiliaryParticles:
    """APPS: particles over blocks, resampled with weight · ζ̂ from short rollouts, the twist divided back out.

    Marked approximate, as every finite population is that no exact kernel is built on; its Ẑ is unbiased.

    Attributes:
        particles: As in ``PowerSMC``.
        threshold: As in ``PowerSMC``.
        block: As in ``PowerSMC``.
        scheme: As in ``PowerSMC``.
        rollouts: M per particle.
        lookahead: H tokens of each rollout.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    particles: int = 16
    threshold: float = 0.5
    block: int = 64
    rollouts: int = 4
    lookahead: int = 32
    scheme: str = "systematic"
    method: ClassVar[str] = "apps"

    def __post_init__(self) -> None:
        check_population(self.particles, self.threshold, self.block, self.scheme)
        for name in ("rollouts", "lookahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def run(self, chain: Chain) -> Run:
        """One population, one answer."""
        particles = yield from self.population(chain)
        record = particles.draw(chain.uniform(Purpose.ANSWER, "apps"))
        diagnostics = population_diagnostics(particles, record) | {"log_z": particles.log_z()}
        return Outcome(record, particles.trace, diagnostics, exact=False)

    def population(self, chain: Chain) -> Generator[Any, Any, Particles]:
        """One run of N particles to the horizon."""
        target, n = self.target, self.particles
        exponents = exponents_of(target)
        particles = Particles([Record.empty(chain.prompt, len(exponents))] * n, np.zeros(n))
        for step, end in enumerate(block_ends(target, self.block)):
            yield from advance(chain, particles, target, end, exponents, "apps", step, peek=False)
            line: dict[str, Any] = {"position": end, "ess": particles.ess, "resampled": False}
            if end < target.horizon and particles.alive:
                values = yield from future_values(chain, particles.records, target, self.rollouts, self.lookahead, step)
                twist = np.logaddexp.reduce(values, axis=1) - math.log(self.rollouts)
                if effective_size(particles.log_weights + twist) < self.threshold * n:
                    chosen = ancestors(particles.log_weights + twist, self.scheme, chain.key("resample"), step)
                    particles.log_weights = particles.log_weights + twist
                    particles.resample(chosen)
                    particles.log_weights = -twist[chosen]
                    line |= {"resampled": True, "ancestors": chosen, "unique_ancestors": len(set(chosen))}
            particles.trace.append(line | {"log_z": particles.log_z(), "alive": len(particles.alive)})
            if not particles.alive:
                break
        return particles


def block_gain(block: Record, start: int, alpha: float) -> float:
    """α log p(b) − log q(b) of the tokens from ``start`` on, which is Σ logz: without −log q the weight is wrong."""
    return float(block.logz[start:, 0].sum())


def grow(
    chain: Chain, records: list[Record], end: int, alpha: float, *labels: int | str
) -> Generator[Any, Any, list[Record]]:
    """Each unfinished record continued from q ∝ p^alpha to position ``end``, all at once."""
    alive = [i for i, record in enumerate(records) if not record.ended and len(record) < end]
    tickets = [chain.start(chain.onward(records[i], end, chain.key(*labels, i), alpha, (alpha,))) for i in alive]
    grown = list(records)
    for i, suffix in zip(alive, (yield tickets) if tickets else [], strict=True):
        grown[i] = records[i].spliced(len(records[i]), suffix)
    return grown


def future_values(
    chain: Chain, records: list[Record], target: PowerTarget, rollouts: int, lookahead: int, step: int
) -> Generator[Any, Any, Array]:
    """(N, M) log-values Σ logz of M rollouts per record; 0 for records that have ended."""
    values = np.zeros((len(records), rollouts))
    column = 0  # alpha is the first exponent recorded
    pending, tickets = [], []
    for i, record in enumerate(records):
        if record.ended or len(record) >= target.horizon:
            continue
        end = min(len(record) + lookahead, target.horizon)
        for r in range(rollouts):
            pending.append((i, r))
            key = chain.key("lookahead", step, i, r)
            tickets.append(chain.start(chain.onward(record, end, key, target.alpha, (target.alpha,))))
    for (i, r), suffix in zip(pending, (yield tickets) if tickets else [], strict=True):
        values[i, r] = float(suffix.logz[:, column].sum())
    return values


def choose(gain: Array, values: Array, jackknife: bool) -> Array:
    """(K,) probabilities ∝ exp(gain) · mean_r exp(values); jackknifed over rollouts, clamped at 0, renormalised."""

    def share(v: Array) -> Array:
        score = gain + np.logaddexp.reduce(v, axis=1) - math.log(v.shape[1])
        weights: Array = np.exp(score - score.max())
        weights /= weights.sum()
        return weights

    full = share(values)
    m = values.shape[1]
    if not jackknife or m < 2:
        return full
    left_out = np.mean([share(np.delete(values, r, axis=1)) for r in range(m)], axis=0)
    corrected: Array = np.maximum(m * full - (m - 1) * left_out, 0.0)
    total = float(corrected.sum())
    return corrected / total if total > 0.0 else full
