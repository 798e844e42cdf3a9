"""Metropolis–Hastings is exact: transition matrices by enumeration, and the real code against the finite-N law."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from fastpower.samplers import MetropolisHastings
from fastpower.samplers.cuts import UniformCut
from fastpower.target import PowerTarget

from .enumeration import Enumeration, finite_law, g_test, toy_models, transition_matrix
from .runs import frequencies, outcomes

MODELS = ["eos", "no_eos", "deterministic", "zero", "modes"]
CHAINS = 3000
uniform = UniformCut().probabilities


@pytest.fixture(scope="module")
def models():
    return toy_models()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_transition_matrix_has_the_power_distribution_as_its_law(models, name, alpha):
    space = Enumeration(models[name], alpha, 4)
    matrix = transition_matrix(space, uniform)
    assert np.abs(matrix.sum(1) - 1).max() < 1e-13
    assert matrix.min() > -1e-13
    flow = space.pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-14
    assert np.abs(space.pi @ matrix - space.pi).max() < 1e-14
    reachable = np.linalg.matrix_power(matrix > 0, len(matrix))
    assert reachable.all()


@pytest.mark.parametrize("name", MODELS)
def test_real_code_follows_the_finite_n_law(models, name):
    alpha, block, horizon, moves = 2.5, 2, 4, 2
    sampler = MetropolisHastings(PowerTarget(alpha, horizon), block=block, moves=moves)
    space, law = finite_law(models[name], alpha, [2, 4], lambda s: transition_matrix(s, uniform), moves)
    assert abs(law.sum() - 1) < 1e-12
    assert g_test(frequencies(models[name], sampler, CHAINS), space.answers, law) > 1e-3


def test_alpha_one_draws_from_the_model_and_accepts_everything(models):
    sampler = MetropolisHastings(PowerTarget(1.0, 4), block=4, moves=3)
    runs = outcomes(models["no_eos"], sampler, 500)
    assert all(event["accepted"] for run in runs for event in run.trace)
    space = Enumeration(models["eos"], 1.0, 4)
    assert g_test(frequencies(models["eos"], sampler, CHAINS), space.answers, space.pi) > 1e-3


# -- the variant alpha → ∞ ---------------------------------------------------------------------------------------


def _improves(space, x, y, m):
    return math.inf if space.logp[y] > space.logp[x] else -math.inf


@pytest.mark.parametrize("options", [{}, {"early_rejection": False, "skip": False, "prefetch": 1}])
def test_accepting_improvements_only_follows_its_finite_n_law_and_never_falls(models, options):
    sampler = MetropolisHastings(PowerTarget(2.5, 4), block=2, moves=2, maximise=True, **options)
    space, law = finite_law(models["modes"], 2.5, [2, 4], lambda s: transition_matrix(s, uniform, _improves), 2)
    runs = outcomes(models["modes"], sampler, CHAINS // 2)
    assert g_test(Counter(tuple(run.record.tokens) for run in runs), space.answers, law) > 1e-3
    assert not any(run.exact for run in runs)
    last = [[event["logp"] for event in run.trace if event["horizon"] == 4] for run in runs]
    assert all(logp == sorted(logp) for logp in last)


def test_accepting_improvements_only_finds_the_most_probable_answer(models):
    sampler = MetropolisHastings(PowerTarget(2.5, 3), block=3, moves=60, maximise=True)
    for decoder in models.values():
        space = Enumeration(decoder, 2.5, 3)
        best = max(space.logp.values())
        assert all(run.record.total_logp > best - 1e-5 for run in outcomes(decoder, sampler, 10))


# -- negative controls: published mistakes must fail the very test that the exact sampler passes ---------------


def _mistake_no_length_ratio(space, x, y, m):
    return space.log_z_sum(y, m) - space.log_z_sum(x, m)


def _mistake_suffix_cut_to_proposal(space, x, y, m):
    n = min(len(x), len(y))
    return space.log_z_sum(y, m, n) - space.log_z_sum(x, m, n) + math.log(len(x) / len(y))


def _mistake_wrong_sign(space, x, y, m):
    target = space.alpha * (space.logp[y] - space.logp[x])
    return target + space.log_q(y, m) - space.log_q(x, m) + math.log(len(x) / len(y))


@pytest.mark.parametrize(
    "log_ratio",
    [_mistake_no_length_ratio, _mistake_suffix_cut_to_proposal, _mistake_wrong_sign],
    ids=lambda f: f.__name__,
)
def test_mistaken_ratios_are_not_stationary(models, log_ratio):
    space = Enumeration(models["eos"], 2.5, 4)
    matrix = transition_matrix(space, uniform, log_ratio)
    assert np.abs(space.pi @ matrix - space.pi).max() > 1e-4
