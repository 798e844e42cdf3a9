"""Islands of Power-SMC on different workers, combined by their Ẑ exactly as ``PowerSMC(islands=R)`` does it alone.

E[Ẑ_r] = Z for every island, so choosing an island with probability Ẑ_r / Σ Ẑ and then one of its particles gives what
one population of R·N particles would in the limit; equal shares would not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastpower.chains.chain import Chain, Run
from fastpower.chains.outcome import Outcome
from fastpower.random import Purpose, select
from fastpower.samplers.particles import shares, told
from fastpower.samplers.smc import PowerSMC, population_diagnostics
from fastpower.target import PowerTarget

#: Costs that add up over islands.
_COSTS = ("decoded_tokens", "forwards", "prefill_tokens")


@dataclass(frozen=True)
class Island:
    """One population of ``smc``: the island of this index, with the keys that it has inside ``smc``."""

    smc: PowerSMC
    index: int
    takes_potential: ClassVar[bool] = True

    @property
    def target(self) -> PowerTarget:
        return self.smc.target

    @property
    def method(self) -> str:
        return self.smc.method

    def run(self, chain: Chain) -> Run:
        """Its answer, should it be the island that is chosen, its log Ẑ, and the uniform that chooses among islands."""
        particles = yield from self.smc.population(chain, "island", self.index)
        record = particles.draw(chain.uniform(Purpose.ANSWER, "island", self.index))
        diagnostics = population_diagnostics(particles, record) | {
            "log_z": told(particles.log_z()),
            "choice": chain.uniform(Purpose.SELECT, "island"),  # the same number on every island
        }
        return Outcome(record, particles.trace, diagnostics)


def split(sampler: Any) -> list[Any]:
    """Samplers that can run apart: the islands of a PowerSMC with several, else the sampler itself."""
    if isinstance(sampler, PowerSMC) and sampler.islands > 1:
        return [Island(sampler, index) for index in range(sampler.islands)]
    return [sampler]


def combine(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of the whole from the records of its islands, in order of index."""
    if len(parts) == 1:
        return dict(parts[0])
    first = parts[0]
    found = [part["diagnostics"]["log_z"] for part in parts]
    log_z = np.array([-math.inf if value is None else value for value in found])
    chosen = select(shares(log_z), float(first["diagnostics"]["choice"]))
    totals = {name: sum(part[name] for part in parts) for name in _COSTS}
    if "finished" in first:
        totals["finished"] = max(part["finished"] for part in parts)
        totals["seconds"] = totals["finished"] - min(part["finished"] - part["seconds"] for part in parts)
    diagnostics = dict(parts[chosen]["diagnostics"]) | {
        "log_z": told(float(np.logaddexp.reduce(log_z) - math.log(len(parts)))),
        "island_log_z": found,
        "island": chosen,
    }
    del diagnostics["choice"]
    for name in ("free_moves", "skipped_tokens", "early_rejections", "early_rejection_tokens"):
        diagnostics[name] = sum(part["diagnostics"].get(name, 0) for part in parts)
    if "savings" in first:
        totals["savings"] = {name: sum(part["savings"][name] for part in parts) for name in first["savings"]}
    return dict(parts[chosen]) | totals | {"diagnostics": diagnostics}
