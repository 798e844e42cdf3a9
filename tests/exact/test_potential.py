"""π ∝ p^α φ: every sampler that takes a potential, hard and soft; what goes wrong if its terms are left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastpower.potential import OfTokens
from fastpower.samplers import (
    ConditionalSMC,
    EntropyCut,
    EntropyGuided,
    MetropolisHastings,
    MultipleTry,
    ParallelTempering,
    ParticleMH,
    PowerSMC,
    particles,
)
from fastpower.samplers.cuts import EntropyJumpCut, UniformCut
from fastpower.target import PowerTarget

from .enumeration import Answer, Enumeration, g_test, toy_models, transition_matrix
from .kernels import multiple_try_matrix, smc_law
from .runs import frequencies, outcomes

ALPHA, HORIZON, CHAINS = 1.7, 3, 1000


def soft(x: Any) -> float:
    return 0.9 * sum(token == 1 for token in x) - 0.4 * len(x)


def hard(x: Any) -> float:
    return 0.0 if len(x) > 1 and x[-1] != 0 else -math.inf


def twist(x: Any) -> float:
    """Wrong in detail, as twists are; above −inf."""
    return 0.7 * sum(token == 1 for token in x) + 0.3 * (x[0] == 0)


POTENTIALS = {"soft": soft, "hard": hard}
UPPER = {"soft": 0.9 * HORIZON, "hard": 0.0}


@pytest.fixture(scope="module")
def model():
    return toy_models()["eos"]


def spaced(model, name: str, horizon: int = HORIZON) -> Enumeration:
    space = Enumeration(model, ALPHA, horizon)
    space.condition(space.logp, {x: POTENTIALS[name](x) for x in space.answers})
    return space


@pytest.fixture(scope="module", params=POTENTIALS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def space(model, name) -> Enumeration:
    found = spaced(model, name)
    plain = Enumeration(model, ALPHA, HORIZON)
    assert np.abs(found.pi - plain.pi).sum() > 0.3, "the potential makes no difference"
    return found


def target(name: str, *, upper: bool = False) -> PowerTarget:
    potential = OfTokens(POTENTIALS[name], UPPER[name]) if upper else POTENTIALS[name]
    return PowerTarget(ALPHA, HORIZON, potential=potential)


def matrix_of(space: Enumeration, cut, mistake: str = "") -> np.ndarray:
    """P(x, y) of a move with the potential; from φ = 0 the first answer with φ > 0 is taken, others by p^α."""
    laws = {x: cut.probabilities(space.entropy(x), space.horizon) for x in space.answers}

    def log_ratio(space: Enumeration, x: Answer, y: Answer, m: int) -> float:
        base = space.log_z_sum(y, m) - space.log_z_sum(x, m) + math.log(laws[y][m]) - math.log(laws[x][m])
        phi_x, phi_y = space.log_potential[x], space.log_potential[y]
        if phi_x == -math.inf:
            return base if phi_y == -math.inf else 0.0
        return base + phi_y - (0.0 if mistake == "no_reverse" else phi_x)

    return transition_matrix(space, cut.probabilities, log_ratio)


def after(space: Enumeration, matrix: np.ndarray, moves: int) -> np.ndarray:
    law = np.array([math.exp(space.log_q(x, 0)) for x in space.answers])
    return law @ np.linalg.matrix_power(matrix, moves)


def assert_keeps(space: Enumeration, matrix: np.ndarray) -> None:
    flow = space.pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-14 and np.abs(matrix.sum(1) - 1).max() < 1e-12
    assert np.abs(np.linalg.matrix_power(matrix, 4096) - space.pi).max() < 1e-9, "support is not found from everywhere"


@pytest.mark.parametrize("upper", [False, True], ids=["", "bounded"])
@pytest.mark.parametrize("cut", [UniformCut(), EntropyJumpCut()], ids=["mh", "ec_mh"])
def test_moves_keep_the_target_and_the_code_follows_its_law(model, space, name, cut, upper):
    matrix = matrix_of(space, cut)
    assert_keeps(space, matrix)
    cls = MetropolisHastings if isinstance(cut, UniformCut) else EntropyCut
    sampler = cls(target(name, upper=upper), block=HORIZON, moves=2, cut=cut)
    assert g_test(frequencies(model, sampler, CHAINS), space.answers, after(space, matrix, 2)) > 1e-3


def test_multiple_tries_keep_the_target_and_the_code_follows_its_law(model, space, name):
    matrix = multiple_try_matrix(space, UniformCut().probabilities, lambda h: 2)
    assert_keeps(space, matrix)
    sampler = MultipleTry(target(name, upper=True), block=HORIZON, moves=2, tries=2)
    assert g_test(frequencies(model, sampler, CHAINS), space.answers, after(space, matrix, 2)) > 1e-3


SAMPLERS: dict[str, Any] = {
    "window": lambda t: MetropolisHastings(t, block=2, moves=50, window=1),
    "egps": lambda t: EntropyGuided(t, block=2, moves=8, tries=2),
    "tempering": lambda t: ParallelTempering(t, block=3, moves=20, ladder=(1.0, t.alpha)),
    "pimh": lambda t: ParticleMH(t, moves=8, particles=3, block=1, ramp=2),
    "csmc": lambda t: ConditionalSMC(t, moves=8, particles=3, block=1),
    "smc": lambda t: PowerSMC(t, particles=48, block=1, ramp=2),
    "islands": lambda t: PowerSMC(t, particles=8, block=2, ramp=0, islands=6),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_reaches_the_target(model, space, name, kind):
    assert g_test(frequencies(model, SAMPLERS[kind](target(name)), 250), space.answers, space.pi) > 1e-3


@pytest.mark.parametrize("kind", ["pimh", "csmc", "smc"])
def test_a_twist_changes_no_target(model, space, name, kind):
    sampler = SAMPLERS[kind](PowerTarget(ALPHA, HORIZON, potential=OfTokens(POTENTIALS[name], twist=twist)))
    assert g_test(frequencies(model, sampler, 250), space.answers, space.pi) > 1e-3


# -- evidence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_twist", [False, True])
def test_evidence_is_unbiased_by_enumeration(model, name, with_twist):
    space = spaced(model, name, 2)
    law, evidence = smc_law(space, 2, 0.9, twist=twist if with_twist else None)
    assert abs(sum(law.values()) - 1) < 1e-12
    assert abs(math.log(evidence) - space.log_norm) < 1e-12


def test_a_twist_that_is_not_divided_out_biases_the_evidence(model, name):
    space = spaced(model, name, 2)
    _, evidence = smc_law(space, 2, 0.9, twist=twist, mistake="no_division")
    assert abs(math.log(evidence) - space.log_norm) > 1e-2


@pytest.mark.parametrize("with_twist", [False, True])
def test_population_code_follows_its_exact_law(model, space, name, with_twist):
    law, _ = smc_law(space, 2, 0.9, twist=twist if with_twist else None)
    potential = OfTokens(POTENTIALS[name], twist=twist if with_twist else None)
    sampler = PowerSMC(PowerTarget(ALPHA, HORIZON, potential=potential), particles=2, threshold=0.9, block=1, ramp=0)
    counts = frequencies(model, sampler, CHAINS)
    assert g_test(counts, space.answers, np.array([law.get(x, 0.0) for x in space.answers])) > 1e-3


def evidence(model, potential, runs: int = 600) -> tuple[float, float]:
    """Mean Ẑ of the code and its standard error; log Ẑ = None is Ẑ = 0."""
    sampler = PowerSMC(PowerTarget(ALPHA, HORIZON, potential=potential), particles=4, threshold=0.9, block=1, ramp=2)
    found = [run.diagnostics["log_z"] for run in outcomes(model, sampler, runs)]
    z = np.array([0.0 if value is None else math.exp(value) for value in found])
    return float(z.mean()), float(z.std(ddof=1) / math.sqrt(len(z)))


@pytest.mark.parametrize("with_twist", [False, True])
def test_evidence_of_the_code_is_unbiased(model, space, name, with_twist):
    mean, error = evidence(model, OfTokens(POTENTIALS[name], twist=twist if with_twist else None))
    assert abs(mean - math.exp(space.log_norm)) < 4 * error < 0.4 * math.exp(space.log_norm)


def test_code_that_does_not_divide_the_twist_out_is_caught(model, space, name, monkeypatch):
    exchange = particles.exchange

    def spoilt(population, values):
        population.log_twists = None
        exchange(population, values)

    monkeypatch.setattr(particles, "exchange", spoilt)
    mean, error = evidence(model, OfTokens(POTENTIALS[name], twist=twist))
    assert abs(mean - math.exp(space.log_norm)) > 6 * error


# -- mistakes of moves -------------------------------------------------------------------------------------------------


def test_a_potential_left_out_of_the_reverse_term_is_not_stationary(model):
    space = spaced(model, "soft")
    assert np.abs(space.pi @ matrix_of(space, UniformCut(), "no_reverse") - space.pi).max() > 1e-3


def test_code_that_leaves_it_out_of_the_reverse_term_is_caught(model, monkeypatch):
    from fastpower.samplers import move, tilt

    def spoilt(x, candidates, log_w):
        return tilt.tilted(x, candidates, log_w) + (x.log_potential or 0.0)

    space = spaced(model, "soft")
    monkeypatch.setattr(move, "tilted", spoilt)
    sampler = MetropolisHastings(target("soft"), block=HORIZON, moves=8)
    law = after(space, matrix_of(space, UniformCut()), 8)
    assert g_test(frequencies(model, sampler, 2000), space.answers, law) < 1e-6


# -- lossless savings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [MetropolisHastings, MultipleTry, EntropyGuided])
@pytest.mark.parametrize("kind", POTENTIALS)
def test_a_bound_saves_questions_and_tokens_and_changes_no_bit(model, cls, kind):
    asked: list[Answer] = []

    def counted(x):
        asked.append(tuple(x))
        return POTENTIALS[kind](x)

    facts, costs = [], []
    for upper in (math.inf, 0.5 * 9 if kind == "soft" else 0.0):
        asked.clear()
        sampler = cls(PowerTarget(3.0, 9, potential=OfTokens(counted, upper)), block=4, moves=6)
        runs = outcomes(model, sampler, 20)
        facts.append([(r.record.tokens, r.record.logp.tobytes(), [e["accepted"] for e in r.trace]) for r in runs])
        costs.append(len(asked))
    assert facts[0] == facts[1] and costs[1] < costs[0] + (kind == "soft")  # a loose bound may save nothing


@pytest.mark.parametrize("options", [{"skip": False}, {"early_rejection": False}, {"prefetch": 4}])
def test_accelerations_change_no_bit(model, options):
    settings: dict[str, Any] = {"block": 4, "moves": 5, "window": 2}
    wanted = PowerTarget(3.0, 8, potential=OfTokens(soft, 0.9 * 8))
    plain = outcomes(model, MetropolisHastings(wanted, **settings), 12)
    other = outcomes(model, MetropolisHastings(wanted, **settings, **options), 12, max_rows=5)
    assert [(a.record.tokens, a.record.logp.tobytes(), a.trace) for a in plain] == [
        (b.record.tokens, b.record.logp.tobytes(), b.trace) for b in other
    ]


def test_a_potential_of_one_changes_no_bit(model):
    for kind, make in SAMPLERS.items():
        plain, other = (outcomes(model, make(PowerTarget(2.0, 6, potential=p)), 8) for p in (None, lambda x: 0.0))
        assert [r.record.tokens for r in plain] == [r.record.tokens for r in other], kind
