"""Negative controls for populations: published mistakes, put into the real particle samplers, must be caught.

Each control runs the code with one change and asks the very test that the right code passes.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from fastpower.decoders.toy import ToyDecoder
from fastpower.samplers import Lookahead, PowerSMC, lookahead, particles, smc
from fastpower.samplers.particles import Particles
from fastpower.target import PowerTarget

from .enumeration import Enumeration, branches, g_test
from .kernels import smc_law
from .runs import frequencies, outcomes

CHAINS = 3000
FAILS = 1e-6  # a control must be rejected this clearly; the right code passes above 1e-3


# -- weights ---------------------------------------------------------------------------------------------------


def z_scores(space: Enumeration, answers: list[tuple[int, ...]], z: np.ndarray) -> np.ndarray:
    """(E[Ẑ 1{answer = x}] − Z π(x)) / standard error, per answer seen often enough."""
    scores = []
    for x, probability in zip(space.answers, space.pi, strict=True):
        hits = np.array([answer == x for answer in answers])
        if hits.sum() < 20:
            continue
        values = z * hits
        error = values.std(ddof=1) / math.sqrt(len(values))
        scores.append((values.mean() - probability * math.exp(space.log_norm)) / error)
    return np.array(scores)


def test_islands_are_properly_weighted_and_pooling_them_equally_is_caught():
    alpha = 1.5
    space = Enumeration(branches(), alpha, 3)
    common = {"particles": 1, "block": 1, "ramp": 0}
    runs = outcomes(branches(), PowerSMC(PowerTarget(alpha, 3), islands=2, **common), 1500)
    z = np.exp([run.diagnostics["log_z"] for run in runs])
    assert np.abs(z_scores(space, [tuple(run.record.tokens) for run in runs], z)).max() < 4.0
    single = outcomes(branches(), PowerSMC(PowerTarget(alpha, 3), **common), CHAINS)
    pairs = list(zip(single[::2], single[1::2], strict=True))
    pooled = np.array([(math.exp(a.diagnostics["log_z"]) + math.exp(b.diagnostics["log_z"])) / 2 for a, b in pairs])
    assert np.abs(z_scores(space, [tuple(a.record.tokens) for a, _ in pairs], pooled)).max() > 6.0


def weights_not_reset(patch: pytest.MonkeyPatch) -> None:
    """Particles keep their ancestors' weights."""
    right = Particles.resample

    def resample(self: Particles, chosen: list[int]) -> None:
        kept = self.log_weights[chosen]
        right(self, chosen)
        self.log_weights = kept

    patch.setattr(Particles, "resample", resample)


def no_boundary_weight(patch: pytest.MonkeyPatch) -> None:
    """Where the exponent rises, what was drawn so far is not weighted for it."""
    right = particles.advance

    def advance(chain, population, target, end, *rest, **options):
        before = target.exponent(population.position)
        yield from right(chain, population, target, end, *rest, **options)
        after = target.alpha if end >= target.horizon else target.exponent(end)
        population.log_weights -= (after - before) * np.array([record.total_logp for record in population.records])

    patch.setattr(smc, "advance", advance)


@pytest.mark.parametrize(
    "mistake, schedule",
    [(weights_not_reset, ()), (no_boundary_weight, ((0, 1.0), (2, 1.5)))],
    ids=["weights not reset", "no boundary weight"],
)
def test_mistaken_weights_are_caught(monkeypatch, mistake, schedule):
    space = Enumeration(branches(), 1.5, 3)
    law, _ = smc_law(space, 2, 1.0, schedule=dict(schedule) or None)
    expected = np.array([law.get(x, 0.0) for x in space.answers])
    sampler = PowerSMC(PowerTarget(1.5, 3, schedule), particles=2, threshold=1.0, block=1, ramp=0)
    assert g_test(frequencies(branches(), sampler, CHAINS), space.answers, expected) > 1e-3
    mistake(monkeypatch)
    assert g_test(frequencies(branches(), sampler, CHAINS), space.answers, expected) < FAILS


# -- frozen particles ------------------------------------------------------------------------------------------

BOX = 4


def boxed(eos: list[int]) -> ToyDecoder:
    """Two answers close their box with the second token; one of them may go on in many ways, the other in one."""
    off = -math.inf
    rows = {1: [0.0, 0.0, off, off, off], 2: [off, off, off, off, 0.0]}
    wide, narrow = [0.0, 0.1, -0.1, 0.2, off], [off, off, off, 0.0, off]
    return ToyDecoder(lambda prefix: rows.get(len(prefix)) or (wide if prefix[1] == 0 else narrow), 5, eos)


def up_to_the_box(counts: dict[tuple[int, ...], float]) -> Counter:
    """Answers told apart up to the closed box only: what is behind it does not matter to this comparison."""
    found: Counter = Counter()
    for answer, count in counts.items():
        found[answer[: answer.index(BOX) + 1]] += count
    return found


def test_a_particle_frozen_at_a_closed_box_is_caught():
    """Frozen there it is weighted for its answer so far alone, as if nothing could follow."""
    space = Enumeration(boxed([]), 2.5, 3)
    law = up_to_the_box(smc_law(space, 2, 0.9)[0])
    sampler = PowerSMC(PowerTarget(2.5, 3), particles=2, threshold=0.9, block=1, ramp=0)
    right, frozen = (up_to_the_box(frequencies(decoder, sampler, CHAINS)) for decoder in (boxed([]), boxed([BOX])))
    answers = sorted(law)
    assert g_test(right, answers, np.array([law[x] for x in answers])) > 1e-3
    assert g_test(frozen, answers, np.array([law[x] for x in answers])) < FAILS


# -- randomness ------------------------------------------------------------------------------------------------


def disagreements(sampler: PowerSMC) -> int:
    """Of 40 seeds, those whose answers are not the same in two runs of different batch sizes."""
    runs = [outcomes(branches(), sampler, 40, max_rows=rows) for rows in (3, 40)]
    return sum(a.record.tokens != b.record.tokens or a.trace != b.trace for a, b in zip(*runs, strict=True))


def test_an_unseeded_generator_is_caught(monkeypatch):
    """Ancestors from a generator without a seed, or with a state that all runs share, cannot be drawn again."""
    sampler = PowerSMC(PowerTarget(1.5, 3), particles=4, threshold=1.0, block=1, ramp=0)
    assert disagreements(sampler) == 0
    generator = np.random.default_rng()
    monkeypatch.setattr(particles, "uniforms", lambda key, start, count, purpose: generator.random(count))
    assert disagreements(sampler) > 10


# -- look-ahead ------------------------------------------------------------------------------------------------


def test_block_scores_without_the_proposal_are_far_from_the_power_distribution(monkeypatch):
    """SPS is approximate, but close with one block and many candidates; without −log q it is not."""
    space = Enumeration(branches(), 1.5, 3)
    sampler = Lookahead(PowerTarget(1.5, 3), block=3, candidates=24, keep=24, rollouts=1, lookahead=1)

    def distance(counts: Counter) -> float:
        total = sum(counts.values())
        return 0.5 * sum(abs(counts[x] / total - p) for x, p in zip(space.answers, space.pi, strict=True))

    right = distance(frequencies(branches(), sampler, 1500))
    monkeypatch.setattr(lookahead, "block_gain", lambda block, start, alpha: alpha * float(block.logp[start:].sum()))
    wrong = distance(frequencies(branches(), sampler, 1500))
    assert right < 0.08
    assert wrong > 0.15
