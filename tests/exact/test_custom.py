"""The documented sampler and cut law of one's own are exact, by the tests that the built-in ones pass."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest

from examples import custom_cut_law, custom_sampler
from fastpower.samplers import LowTemperature, MetropolisHastings
from fastpower.target import PowerTarget

from .enumeration import Enumeration, finite_law, g_test, toy_models, transition_matrix
from .runs import frequencies

ALPHA, CHAINS = 2.5, 1500


@pytest.fixture(scope="module")
def models():
    return toy_models()


def independence_matrix(space: Enumeration) -> np.ndarray:
    """P(x, y) = q(y) min(1, w(y) / w(x)), w = p^alpha / q."""
    q = np.exp([space.log_q(x, 0) for x in space.answers])
    log_w = np.array([space.log_z_sum(x, 0) for x in space.answers])
    matrix = q[None, :] * np.exp(np.minimum(0.0, log_w[None, :] - log_w[:, None]))
    np.fill_diagonal(matrix, 0.0)
    return matrix + np.diag(1.0 - matrix.sum(1))


@pytest.mark.parametrize("name", ["no_eos", "zero"])
def test_custom_sampler_follows_its_finite_n_law_which_tends_to_the_power_distribution(models, name):
    space = Enumeration(models[name], ALPHA, 3)
    matrix = independence_matrix(space)
    assert np.abs(space.pi @ matrix - space.pi).max() < 1e-14
    law = np.exp([space.log_q(x, 0) for x in space.answers]) @ np.linalg.matrix_power(matrix, 3)
    counts = frequencies(models[name], custom_sampler.Independence(PowerTarget(ALPHA, 3), moves=3), CHAINS)
    assert g_test(counts, space.answers, law) > 1e-3


def test_custom_cut_law_is_exact(models):
    cut = custom_cut_law.EarlyCut(decay=0.5)
    for decoder in models.values():
        space = Enumeration(decoder, ALPHA, 3)
        matrix = transition_matrix(space, cut.probabilities)
        flow = space.pi[:, None] * matrix
        assert np.abs(flow - flow.T).max() < 1e-14
    sampler = MetropolisHastings(PowerTarget(ALPHA, 3), block=2, moves=2, cut=cut)
    space, law = finite_law(models["eos"], ALPHA, [2, 3], lambda s: transition_matrix(s, cut.probabilities), 2)
    assert g_test(frequencies(models["eos"], sampler, CHAINS), space.answers, law) > 1e-3


def test_code_that_never_rejects_is_caught(models):
    """Negative control: proposals that are all accepted are draws from q."""
    space = Enumeration(models["no_eos"], ALPHA, 3)
    law = np.exp([space.log_q(x, 0) for x in space.answers]) @ np.linalg.matrix_power(independence_matrix(space), 3)
    counts = frequencies(models["no_eos"], LowTemperature(PowerTarget(ALPHA, 3)), CHAINS)
    assert g_test(counts, space.answers, law) < 1e-6


@pytest.mark.parametrize("cls", [custom_sampler.Independence, custom_cut_law.EarlyCut])
def test_the_examples_are_short_and_the_documentation_shows_them(cls):
    source = inspect.getsource(cls)
    assert len(source.splitlines()) <= 30
    assert source in (Path(__file__).parents[2] / "docs" / "custom_samplers.md").read_text(encoding="utf-8")


def test_custom_sampler_example_finds_what_a_low_temperature_misses(capsys):
    found = custom_sampler.main(chains=300)
    assert "low_temperature" in capsys.readouterr().out
    norm = sum(math.exp(2.0 * logp) for logp in custom_sampler.model().records([0], 2).values())
    sure = math.exp(2.0 * custom_sampler.model().records([0], 2)[1, 3]) / norm
    assert sure > 0.5 > found["low_temperature"][1, 3] / 300
    assert abs(found["independence"][1, 3] / 300 - sure) < 4 * math.sqrt(sure * (1 - sure) / 300)


def test_custom_cut_law_example_runs(capsys):
    assert len(custom_cut_law.main(chains=3)) == 3
    assert capsys.readouterr().out.count("mean log p") == 2
