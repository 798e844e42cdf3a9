"""Power-SMC (Azizi et al., arXiv 2602.10273): particles with weights, and exact kernels made of them.

A run's answer is one draw from the final weights: consistent as N grows, with E[Ẑ] = Z for every N. Independent runs
("islands") combine with weights Ẑ_r. ``ParticleMH`` and ``ConditionalSMC`` (Andrieu, Doucet, Holenstein 2010) turn any
run into a Markov kernel that leaves p^α invariant for every N.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain, Run, together
from fastpower.chains.outcome import Outcome, Trace
from fastpower.chains.record import Record
from fastpower.random import Purpose, select
from fastpower.samplers.particles import (
    SCHEMES,
    Particles,
    advance,
    ancestors,
    block_ends,
    catch_up,
    exponents_of,
    shares,
    tilt,
    told,
    twist,
)
from fastpower.samplers.rejuvenate import rejuvenate
from fastpower.target import PowerTarget, linear_ramp


@dataclass(frozen=True)
class PowerSMC:
    """Power-SMC: particles that grow block by block and are resampled by their weights (arXiv 2602.10273).

    Attributes:
        particles: N.
        threshold: Resample when ESS < threshold · N, κ in (0, 1].
        block: Tokens between checks.
        ramp: Tokens over which the exponent rises from 1 to alpha (0: none; ignored if the target has a schedule).
        scheme: systematic, stratified, residual or multinomial.
        islands: Independent runs combined by their Ẑ.
        moves: Metropolis–Hastings moves of every particle at each check (``rejuvenate.py``): E[Ẑ] stays the same. Each
            costs as many tokens as there are behind its cut.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    particles: int = 64
    threshold: float = 0.5
    block: int = 32
    ramp: int = 100
    scheme: str = "systematic"
    islands: int = 1
    moves: int = 0
    method: ClassVar[str] = "smc"
    takes_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_population(self.particles, self.threshold, self.block, self.scheme)
        if self.ramp < 0:
            raise ValueError(f"ramp must be ≥ 0 tokens, got {self.ramp}")
        if self.islands < 1:
            raise ValueError(f"islands must be at least 1, got {self.islands}")
        if self.moves < 0:
            raise ValueError(f"moves must be ≥ 0 (0 = none at a check), got {self.moves}")
        if self.moves and self.target.potential is not None and self.target.potential.twisted:
            raise ValueError(f"moves do not go with a potential that has a twist, got moves={self.moves}; use moves=0")

    @property
    def annealed(self) -> PowerTarget:
        """The target with the ramp in its schedule."""
        if self.target.schedule or self.ramp == 0:
            return self.target
        tokens = min(self.ramp, self.target.horizon)
        return replace(self.target, schedule=linear_ramp(self.target.alpha, tokens))

    def run(self, chain: Chain) -> Run:
        """All islands at once, then one answer."""
        runs = yield from together([self.population(chain, "island", island) for island in range(self.islands)])
        log_z = np.array([particles.log_z() for particles in runs])
        chosen = select(shares(log_z), chain.uniform(Purpose.SELECT, "island"))
        particles = runs[chosen]
        record = particles.draw(chain.uniform(Purpose.ANSWER, "island", chosen))
        diagnostics = population_diagnostics(particles, record) | {
            "log_z": told(float(np.logaddexp.reduce(log_z) - math.log(self.islands))),
            "island_log_z": [told(value) for value in log_z.tolist()],
            "island": chosen,
        }
        # the law is p^alpha in the limit of many particles; one alone is a draw token by token at temperature 1 / alpha
        exact = self.particles * self.islands > 1 or self.target.alpha == 1.0
        return Outcome(record, particles.trace, diagnostics, exact=exact)

    def population(
        self, chain: Chain, *labels: int | str, fixed: Record | None = None
    ) -> Generator[Any, Any, Particles]:
        """One run of N particles to the horizon. ``fixed`` is the retained trajectory of conditional SMC."""
        target, n, potential = self.annealed, self.particles, self.target.potential
        exponents = exponents_of(target)
        empty = Record.empty(chain.prompt, len(exponents))
        particles = Particles([empty] * n, np.zeros(n))
        alpha = target.exponent(0)
        for step, end in enumerate(block_ends(target, self.block)):
            yield from advance(chain, particles, target, end, exponents, *labels, step, fixed=fixed)
            alpha = target.alpha if end >= target.horizon else target.exponent(end)
            if potential is not None and potential.twisted and end < target.horizon:
                yield from twist(chain, particles, potential)
            ess = particles.ess
            resampled = end < target.horizon and bool(particles.alive) and ess < self.threshold * n
            line: dict[str, Any] = {
                "position": end,
                "alpha": alpha,
                "ess": ess,
                "alive": len(particles.alive),
                "resampled": resampled,
            }
            if resampled:
                chosen = self._ancestors(chain, particles, step, *labels, fixed=fixed is not None)
                particles.resample(chosen)
                line["ancestors"] = chosen
                line["unique_ancestors"] = len(set(chosen))
            if self.moves and fixed is None and end < target.horizon:
                # at every check: whether there was a resampling, or all have ended, depends on the particles
                accepted = 0
                for s in range(self.moves):
                    accepted += yield from rejuvenate(chain, particles, alpha, exponents, *labels, step, "move", s)
                line["moved"] = accepted / (self.moves * n)
            particles.trace.append(line | {"log_z": told(particles.log_z())})
            if not particles.alive and not self.moves:  # moves may take an end back
                break
        catch_up(particles, target)
        yield from tilt(chain, particles, potential)
        return particles

    def _ancestors(self, chain: Chain, particles: Particles, step: int, *labels: int | str, fixed: bool) -> list[int]:
        key = chain.key(*labels, "resample")
        if not fixed:
            return ancestors(particles.log_weights, self.scheme, key, step)
        # Given that slot 0 keeps the retained trajectory, multinomial ancestors of the others stay independent.
        return [0, *ancestors(particles.log_weights, "multinomial", key, step)[1:]]


@dataclass(frozen=True)
class ParticleMH:
    """Particle-independent Metropolis–Hastings: propose a whole new SMC run, accept with min(1, Ẑ' / Ẑ).

    Exact for every N.

    Attributes:
        target: What is sampled; the runs have it as theirs.
        moves: Proposals after the first run.
        particles: As in ``PowerSMC``, as are the others.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    moves: int = 4
    particles: int = 16
    threshold: float = 0.5
    block: int = 32
    ramp: int = 100
    scheme: str = "systematic"
    method: ClassVar[str] = "pimh"
    takes_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.moves < 1:
            raise ValueError(f"moves must be at least 1, got {self.moves}")
        self.smc  # noqa: B018 - checks the remaining settings

    @property
    def smc(self) -> PowerSMC:
        """The proposal."""
        return PowerSMC(self.target, self.particles, self.threshold, self.block, self.ramp, self.scheme)

    @property
    def planned_moves(self) -> int:
        return self.moves

    def run(self, chain: Chain) -> Run:
        """A chain over runs."""
        smc, trace = self.smc, Trace()
        record: Record | None = None
        log_z = -math.inf
        for i in range(self.moves + 1):
            particles = yield from smc.population(chain, "run", i)
            candidate = particles.draw(chain.uniform(Purpose.ANSWER, "run", i))
            proposed = particles.log_z()
            accepted = log_z == -math.inf or math.log(chain.uniform(Purpose.ACCEPT, "run", i)) < proposed - log_z
            if accepted:
                record, log_z = candidate, proposed
            assert record is not None
            if i > 0:
                chain.moved(accepted)
                trace.append(
                    {"accepted": accepted, "log_z": told(proposed), "length": len(record), "logp": record.total_logp}
                )
            chain.partial = lambda record=record: Outcome(record, list(trace), complete=False)
        assert record is not None
        return Outcome(record, trace, {"log_z": told(log_z)})


@dataclass(frozen=True)
class ConditionalSMC:
    """Conditional SMC: each move reruns the population around the current answer and draws a new one from it.

    The first answer is drawn from q. Exact (p^α-invariant) for every N.

    Attributes:
        particles: N ≥ 2, the retained answer included; resampling is multinomial.
    """

    target: PowerTarget = field(default_factory=PowerTarget)
    moves: int = 4
    particles: int = 16
    threshold: float = 0.5
    block: int = 32
    ramp: int = 0
    method: ClassVar[str] = "csmc"
    takes_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise ValueError(f"particles must be at least 2 (one is the retained answer), got {self.particles}")
        if self.moves < 1:
            raise ValueError(f"moves must be at least 1, got {self.moves}")
        self.smc  # noqa: B018 - checks the remaining settings

    @property
    def smc(self) -> PowerSMC:
        """The population."""
        return PowerSMC(self.target, self.particles, self.threshold, self.block, self.ramp, "multinomial")

    @property
    def planned_moves(self) -> int:
        return self.moves

    def run(self, chain: Chain) -> Run:
        """A chain of answers."""
        smc, trace = self.smc, Trace()
        first = replace(smc, particles=1)
        x = (yield from first.population(chain, "start")).records[0]
        for i in range(self.moves):
            chain.partial = lambda x=x: Outcome(x, list(trace), complete=False)
            particles = yield from smc.population(chain, "move", i, fixed=x)
            y = particles.draw(chain.uniform(Purpose.ANSWER, "move", i))
            moved = y is not particles.records[0]  # another particle, whatever its tokens: as in every other sampler
            chain.moved(moved)
            x = y
            trace.append({"accepted": moved, "log_z": told(particles.log_z()), "length": len(x), "logp": x.total_logp})
        return Outcome(x, trace)


def check_population(particles: int, threshold: float, block: int, scheme: str) -> None:
    """Settings that every population shares."""
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must lie in (0, 1] (a share of the particles), got {threshold}")
    if block < 1:
        raise ValueError(f"block must be at least 1 token, got {block}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")


def population_diagnostics(particles: Particles, answer: Record) -> dict[str, Any]:
    """Summary of one population's trace; ``particle`` is the slot of the answer."""
    return {
        "particles": len(particles),
        "particle": next(i for i, record in enumerate(particles.records) if record is answer),
        "ess": particles.ess,
        "resamplings": sum(line["resampled"] for line in particles.trace),
        "unique_answers": len({tuple(record.tokens) for record in particles.records}),
    }
