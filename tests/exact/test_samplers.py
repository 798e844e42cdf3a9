"""The other exact samplers: enumeration proves the kernel, the G-test ties the real code to it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from fastpower import generate
from fastpower.samplers import (
    AuxiliaryParticles,
    BestOfN,
    ConditionalSMC,
    EntropyCut,
    EntropyGuided,
    Lookahead,
    LowTemperature,
    MetropolisHastings,
    MultipleTry,
    ParallelTempering,
    ParticleMH,
    Plain,
    PowerSMC,
)
from fastpower.samplers.cuts import (
    EntropyJumpCut,
    EntropyQuantileCut,
    EntropyThresholdCut,
    FixedHorizonCut,
    MixtureCut,
    UniformCut,
)
from fastpower.target import PowerTarget

from .enumeration import Enumeration, finite_law, g_test, toy_models, transition_matrix
from .kernels import multiple_try_matrix, smc_law, swap_matrix
from .runs import frequencies, outcomes

MODELS = ["eos", "no_eos", "deterministic", "zero", "modes"]
EVERY = ["eos", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "eos")]
ALPHA = 2.5
CHAINS = 2000
CUTS = {
    "uniform": UniformCut(),
    "fixed_horizon": FixedHorizonCut(),
    "jump": EntropyJumpCut(),
    "threshold": EntropyThresholdCut(0.6, window=0),
    "neighbourhood": EntropyThresholdCut(0.6, window=1),
    "quantile": EntropyQuantileCut(0.5),
    "mixture": MixtureCut((EntropyJumpCut(beta=1.0), UniformCut()), (0.7, 0.3)),
}


@pytest.fixture(scope="module")
def models():
    return toy_models()


def assert_invariant(space, matrix):
    assert np.abs(matrix.sum(1) - 1).max() < 1e-13
    flow = space.pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-14
    assert np.abs(space.pi @ matrix - space.pi).max() < 1e-14
    assert np.linalg.matrix_power(matrix > 0, len(matrix)).all(), "reducible"


# -- cut laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_every_cut_law_is_exact(models, name, cut):
    space = Enumeration(models[name], ALPHA, 3)
    assert_invariant(space, transition_matrix(space, cut.probabilities))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_real_code_follows_the_finite_law_of_every_cut_law(models, name, cut):
    sampler = MetropolisHastings(PowerTarget(ALPHA, 3), block=2, moves=2, cut=cut)
    space, law = finite_law(models[name], ALPHA, [2, 3], lambda s: transition_matrix(s, cut.probabilities), 2)
    assert g_test(frequencies(models[name], sampler, CHAINS), space.answers, law) > 1e-3


def test_cut_ratio_dropped_is_not_stationary(models):
    space = Enumeration(models["eos"], ALPHA, 4)
    matrix = transition_matrix(
        space, EntropyJumpCut().probabilities, lambda s, x, y, m: s.log_z_sum(y, m) - s.log_z_sum(x, m)
    )
    assert np.abs(space.pi @ matrix - space.pi).max() > 1e-4


def test_a_law_that_never_cuts_at_zero_is_reducible(models):
    def never_first(entropy, horizon):
        p = np.ones(len(entropy))
        p[0] = 0.0
        return p / max(p.sum(), 1.0)

    space = Enumeration(models["eos"], ALPHA, 3)
    matrix = transition_matrix(space, never_first, lambda s, x, y, m: s.log_z_sum(y, m) - s.log_z_sum(x, m))
    assert not np.linalg.matrix_power(matrix > 0, len(matrix)).all()


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_bound_of_a_cut_law_is_an_upper_bound(cut):
    rng = np.random.default_rng(3)
    for _ in range(200):
        entropy = rng.choice([0.0, 0.2, 0.7, 1.1], size=rng.integers(2, 9))
        known = int(rng.integers(0, len(entropy)))
        m = int(rng.integers(0, known + 1))
        bound = cut.bound(entropy[:known], m, 12)
        for t in range(known, len(entropy)):
            limit = bound(float(entropy[t]))
            assert cut.log_probability(entropy, m, 12) <= limit + 1e-12


# -- multiple try, EGPS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tries", [1, 2, 3])
def test_multiple_try_is_exact(models, name, tries):
    space = Enumeration(models[name], ALPHA, 2)
    matrix = multiple_try_matrix(space, UniformCut().probabilities, lambda h: tries)
    assert_invariant(space, matrix)
    if tries == 1:
        assert np.abs(matrix - transition_matrix(space, UniformCut().probabilities)).max() < 1e-14


def test_tries_may_depend_on_the_entropy_at_the_cut(models):
    space = Enumeration(models["eos"], ALPHA, 3)
    assert_invariant(
        space, multiple_try_matrix(space, EntropyThresholdCut(0.6).probabilities, lambda h: 2 if h >= 0.6 else 1)
    )


def test_wrong_multiple_try_weights_are_not_stationary(models):
    space = Enumeration(models["eos"], ALPHA, 2)
    matrix = multiple_try_matrix(space, UniformCut().probabilities, lambda h: 2, weight_error=0.5)
    assert np.abs(space.pi @ matrix - space.pi).max() > 1e-4


@pytest.mark.parametrize("name", EVERY)
def test_multiple_try_code_follows_its_finite_law(models, name):
    sampler = MultipleTry(PowerTarget(ALPHA, 3), block=2, moves=2, tries=3)
    space, law = finite_law(
        models[name], ALPHA, [2, 3], lambda s: multiple_try_matrix(s, UniformCut().probabilities, lambda h: 3), 2
    )
    assert g_test(frequencies(models[name], sampler, CHAINS), space.answers, law) > 1e-3


@pytest.mark.parametrize("skip", [True, False])
def test_one_try_is_metropolis_hastings_move_for_move(models, skip):
    target = PowerTarget(3.0, 6)
    single = outcomes(models["eos"], MetropolisHastings(target, block=3, moves=3), 50)
    tried = outcomes(models["eos"], MultipleTry(target, block=3, moves=3, tries=1, skip=skip), 50)
    assert [a.record.tokens for a in single] == [b.record.tokens for b in tried]
    assert [a.trace for a in single] == [b.trace for b in tried]


@pytest.mark.parametrize("name", ["eos", "deterministic"])
def test_entropy_guided_code_follows_its_finite_law(models, name):
    """Blocks below the threshold get no moves at their warm-up stage; the last stage always does."""
    h, block_h, cut = 0.6, 0.75, EntropyThresholdCut(0.6)
    sampler = EntropyGuided(
        PowerTarget(ALPHA, 3), block=2, moves=2, cut=cut, tries=2, threshold=h, block_threshold=block_h, window=0
    )

    def matrix(space):
        moves = multiple_try_matrix(space, cut.probabilities, lambda entropy: 2 if entropy >= h else 1)
        if space.horizon < 3:
            for x in space.answers:
                if x[-1] not in space.decoder.eos_ids and space.entropy(x).mean() < block_h:
                    # Skipped for all N moves together: finite_law takes the N-th power, and such an x never moves.
                    skipped.add(x)
        return moves

    skipped: set = set()
    space, law = finite_law(models[name], ALPHA, [2, 3], matrix, 2, skipped=skipped)
    assert skipped, "the model has no block to skip: this test would not test skipping"
    assert g_test(frequencies(models[name], sampler, CHAINS), space.answers, law) > 1e-3


def test_entropy_cut_is_metropolis_hastings_with_its_cut_law(models):
    target = PowerTarget(3.0, 6)
    a = outcomes(models["modes"], EntropyCut(target, block=3, moves=3), 30)
    b = outcomes(models["modes"], MetropolisHastings(target, block=3, moves=3, cut=EntropyJumpCut()), 30)
    assert [x.record.tokens for x in a] == [y.record.tokens for y in b]


# -- tempering -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_swaps_leave_the_joint_law_invariant_and_the_code_follows_it(models, name):
    decoder, ladder, horizon, moves = models[name], (1.0, ALPHA), 2, 3
    low, high = (Enumeration(decoder, a, horizon) for a in ladder)
    joint = np.kron(low.pi, high.pi)
    swap = swap_matrix(low, high)
    assert np.abs(joint @ swap - joint).max() < 1e-14
    sweep = np.kron(
        transition_matrix(low, UniformCut().probabilities), transition_matrix(high, UniformCut().probabilities)
    )
    start = [np.array([math.exp(s.log_q(x, 0)) for x in s.answers]) for s in (low, high)]
    law = np.kron(*start)
    for i in range(moves):
        law = law @ sweep
        law = law @ swap if i % 2 == 0 else law  # with two rungs there is no odd pair
    marginal = law.reshape(len(low.answers), -1).sum(0)
    sampler = ParallelTempering(PowerTarget(ALPHA, horizon), block=2, moves=moves, ladder=ladder)
    assert g_test(frequencies(decoder, sampler, CHAINS), high.answers, marginal) > 1e-3


def test_a_ladder_of_one_rung_is_metropolis_hastings(models):
    target = PowerTarget(3.0, 6)
    single = outcomes(models["eos"], MetropolisHastings(target, block=3, moves=3), 40)
    ladder = outcomes(models["eos"], ParallelTempering(target, block=3, moves=3, ladder=(3.0,)), 40)
    assert [a.record.tokens for a in single] == [b.record.tokens for b in ladder]


# -- sequential Monte Carlo ------------------------------------------------------------------------------------

RAMP = {0: 1.0, 1: ALPHA}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", [None, RAMP], ids=["flat", "ramp"])
def test_evidence_is_unbiased_by_enumeration(models, name, schedule):
    space = Enumeration(models[name], ALPHA, 2)
    law, evidence = smc_law(space, 2, 0.9, schedule=schedule)
    assert abs(sum(law.values()) - 1) < 1e-12
    assert abs(math.log(evidence) - space.log_norm) < 1e-12


@pytest.mark.parametrize("mistake, schedule", [("no_reset", None), ("no_boundary", RAMP)])
def test_mistaken_weights_bias_the_evidence(models, mistake, schedule):
    space = Enumeration(models["eos"], ALPHA, 3)
    _, evidence = smc_law(space, 2, 1.0, schedule=schedule, mistake=mistake)
    assert abs(math.log(evidence) - space.log_norm) > 1e-2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", [(), tuple(RAMP.items())], ids=["flat", "ramp"])
def test_smc_code_follows_its_exact_law(models, name, schedule):
    space = Enumeration(models[name], ALPHA, 3)
    law, _ = smc_law(space, 2, 0.9, schedule=dict(schedule) or None)
    sampler = PowerSMC(PowerTarget(ALPHA, 3, schedule), particles=2, threshold=0.9, block=1, ramp=0)
    counts = frequencies(models[name], sampler, CHAINS)
    assert g_test(counts, space.answers, np.array([law.get(x, 0.0) for x in space.answers])) > 1e-3


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "multinomial"])
def test_code_evidence_is_unbiased(models, scheme):
    space = Enumeration(models["eos"], ALPHA, 4)
    sampler = PowerSMC(PowerTarget(ALPHA, 4), particles=4, threshold=0.8, block=2, ramp=2, scheme=scheme)
    runs = outcomes(models["eos"], sampler, 1000)
    z = np.exp([run.diagnostics["log_z"] for run in runs])
    error = z.std(ddof=1) / math.sqrt(len(z))
    assert abs(z.mean() - math.exp(space.log_norm)) < 4 * error


def test_code_evidence_of_the_auxiliary_particles_is_unbiased(models):
    """Resampling with noisy look-ahead values is undone by dividing them out: E[Ẑ] = Z all the same."""
    space = Enumeration(models["eos"], ALPHA, 4)
    sampler = AuxiliaryParticles(PowerTarget(ALPHA, 4), particles=3, threshold=1.0, block=1, rollouts=2, lookahead=2)
    runs = outcomes(models["eos"], sampler, 600)
    assert any(line["resampled"] for run in runs for line in run.trace)
    z = np.exp([run.diagnostics["log_z"] for run in runs])
    error = z.std(ddof=1) / math.sqrt(len(z))
    assert error < 0.1 * math.exp(space.log_norm), "too noisy to see a bias"
    assert abs(z.mean() - math.exp(space.log_norm)) < 4 * error


@pytest.mark.parametrize(
    "sampler",
    [
        ParticleMH(PowerTarget(ALPHA, 2), moves=20, particles=2, block=1, ramp=0, threshold=0.9),
        ConditionalSMC(PowerTarget(ALPHA, 2), moves=20, particles=2, block=1, threshold=0.9),
    ],
    ids=["pimh", "csmc"],
)
@pytest.mark.parametrize("name", EVERY)
def test_particle_kernels_reach_the_power_distribution_with_two_particles(models, name, sampler):
    space = Enumeration(models[name], ALPHA, 2)
    assert g_test(frequencies(models[name], sampler, 800), space.answers, space.pi) > 1e-3


@pytest.mark.parametrize("cls", [PowerSMC, ParticleMH, ConditionalSMC])
def test_alpha_one_keeps_all_weights_equal(models, cls):
    sampler = cls(PowerTarget(1.0, 4), particles=3, block=2)
    for run in outcomes(models["eos"], sampler, 50):
        assert abs(run.diagnostics.get("log_z", 0.0)) < 1e-5


# -- alpha = 1 -------------------------------------------------------------------------------------------------

MODEL_ITSELF = PowerTarget(1.0, 3)


@pytest.mark.parametrize(
    "sampler",
    [
        Plain(MODEL_ITSELF),
        LowTemperature(MODEL_ITSELF),
        BestOfN(MODEL_ITSELF, n=1),
        MetropolisHastings(MODEL_ITSELF, block=2, moves=2, window=1),
        EntropyCut(MODEL_ITSELF, block=2, moves=1),
        MultipleTry(MODEL_ITSELF, block=2, moves=1, tries=2),
        EntropyGuided(MODEL_ITSELF, block=2, moves=1, tries=2),
        ParallelTempering(MODEL_ITSELF, block=2, moves=1, ladder=(0.5, 1.0)),
        PowerSMC(MODEL_ITSELF, particles=3, block=1),
        ParticleMH(MODEL_ITSELF, particles=2, block=1, moves=1),
        ConditionalSMC(MODEL_ITSELF, particles=2, block=1, moves=1),
        AuxiliaryParticles(MODEL_ITSELF, particles=2, block=1, rollouts=1, lookahead=1),
        Lookahead(MODEL_ITSELF, block=1, candidates=2, keep=2, rollouts=1, lookahead=1),
    ],
    ids=lambda sampler: sampler.method,
)
def test_alpha_one_is_the_model_itself_for_every_sampler(models, sampler):
    space = Enumeration(models["modes"], 1.0, 3)
    assert g_test(frequencies(models["modes"], sampler, 600), space.answers, space.pi) > 1e-3


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MultipleTry(tries=0), "tries must be at least 1"),
        (lambda: PowerSMC(particles=0), "particles must be at least 1"),
        (lambda: PowerSMC(threshold=0.0), r"threshold must lie in \(0, 1\]"),
        (lambda: PowerSMC(threshold=1.5), r"threshold must lie in \(0, 1\]"),
        (lambda: ConditionalSMC(particles=1), "particles must be at least 2"),
        (lambda: PowerSMC(scheme="magic"), "scheme must be one of"),
        (lambda: ParallelTempering(ladder=(4.0, 1.0)), "ladder must be increasing"),
        (lambda: ParallelTempering(ladder=(1.0, 2.0)), "ladder must end at alpha"),
        (lambda: PowerTarget(4.0, 10, ((0, 1.0), (5, 2.0))), "never reaching alpha"),
        (lambda: PowerTarget(4.0, 0), "horizon must be at least 1"),
        (lambda: PowerTarget(0.0), "alpha must be a finite number > 0"),
        (lambda: PowerTarget(math.nan), "alpha must be a finite number > 0"),
        (lambda: PowerTarget(4.0, 9, ((3, 1.0), (3, 4.0))), "positions must increase"),
        (lambda: PowerTarget(4.0, -3), "horizon must be at least 1"),
        (lambda: ParallelTempering(ladder=(1.0, 1.0, 4.0)), "ladder must be increasing"),
        (lambda: ParallelTempering(ladder=(-1.0, 4.0)), "ladder must be increasing exponents > 0"),
        (lambda: EntropyGuided(tries=0), "tries must be at least 1"),
        (lambda: ParticleMH(particles=0), "particles must be at least 1"),
        (lambda: AuxiliaryParticles(threshold=math.nan), r"threshold must lie in \(0, 1\]"),
        (lambda: AuxiliaryParticles(particles=0), "particles must be at least 1"),
        (lambda: Lookahead(candidates=4, keep=5), "keep = 5 exceeds candidates = 4"),
        (lambda: BestOfN(n=0), "n must be at least 1"),
        (lambda: PowerSMC(islands=0), "islands must be at least 1"),
        (lambda: MetropolisHastings(prefetch=0), "prefetch must be at least 1"),
        (lambda: MetropolisHastings(block=0), "block must be at least 1"),
        (lambda: MetropolisHastings(moves=0), "moves must be at least 1"),
        (lambda: EntropyJumpCut(epsilon=2.0), "epsilon must lie in"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_without_end_of_sequence_is_refused_unless_that_is_meant(models):
    sampler = MetropolisHastings(PowerTarget(ALPHA, 4), block=2, moves=2)
    with pytest.raises(ValueError, match=r"names no end-of-sequence token.*exactly 4 tokens.*fixed_length=True"):
        generate(models["no_eos"], [[0]], sampler)
    results = generate(models["no_eos"], [[0], [1]], sampler, chains=5, fixed_length=True)
    assert {len(result.token_ids) for result in results} == {4}
    assert all(result.diagnostics["hit_cap"] for result in results)


def test_a_model_without_end_of_sequence_is_sampled_exactly_where_that_is_meant(models):
    space = Enumeration(models["no_eos"], ALPHA, 2)
    law = np.exp([space.log_q(x, 0) for x in space.answers])
    results = generate(models["no_eos"], [[0]], LowTemperature(PowerTarget(ALPHA, 2)), chains=800, fixed_length=True)
    assert g_test(Counter(tuple(result.token_ids) for result in results), space.answers, law) > 1e-3
