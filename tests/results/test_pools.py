"""Reweighting a pool: expectations under p^alpha by enumeration, balance of two pools, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastpower import generate, load, make_sampler
from fastpower.results.pools import FEWEST, rank_weights, reweight, vote
from tests.exact.enumeration import PROMPT, Enumeration, toy_models

HORIZON = 4


def pool(method: str, alpha: float, chains: int, seed: int = 0):
    sampler = make_sampler(method, alpha=alpha, max_new_tokens=HORIZON)
    return list(generate(load(toy_models()["eos"]), [list(PROMPT)], sampler, seed=seed, chains=chains))


def exact(alpha: float) -> Enumeration:
    return Enumeration(toy_models()["eos"], alpha, HORIZON)


def density(method: str, law: Enumeration) -> np.ndarray:
    """What an answer of the method has as probability; low temperature at the law's exponent."""
    if method == "plain":
        return np.exp([law.logp[x] for x in law.answers])
    logz = [sum(law.logz(x[:t]) for t in range(len(x))) for x in law.answers]
    return np.exp([law.alpha * law.logp[x] - z for x, z in zip(law.answers, logz, strict=True)])


def shares(answers, weights, law: Enumeration) -> np.ndarray:
    """The weight of every answer of the enumeration."""
    found = np.zeros(len(law.answers))
    for answer, weight in zip(answers, weights, strict=True):
        found[law.index[tuple(answer.token_ids)]] += weight
    return found


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("kinds", [("plain",), ("low_temperature",), ("plain", "low_temperature")])
def test_a_pool_estimates_masses_and_z_of_every_alpha(kinds, alpha):
    answers = [a for kind in kinds for a in pool(kind, 2.0, 4000 // len(kinds))]
    seen, law = reweight(answers, alpha), exact(alpha)
    q = np.mean([density(kind, exact(2.0)) for kind in kinds], axis=0)
    second = law.pi**2 / q / len(answers)  # E[w²] of the answers, normalised: the delta method's standard errors
    error = np.sqrt(second * (1 - 2 * law.pi) + second.sum() * law.pi**2)
    assert np.all(np.abs(shares(answers, seen.weights, law) - law.pi) < 5 * error + 5e-3)
    assert seen.log_z == pytest.approx(law.log_norm, abs=5 * math.sqrt(second.sum()) + 1e-6)
    assert 1 <= seen.ess <= len(answers) + 1e-9


def test_weights_are_equal_where_the_pool_is_the_target():
    assert reweight(pool("plain", 4.0, 50), 1.0).ess == pytest.approx(50)
    answers = pool("low_temperature", 2.0, 50)
    mass = np.exp([sum(answer.token_logz) for answer in answers])
    assert reweight(answers, 2.0).weights == pytest.approx(mass / mass.sum())


def test_leaving_the_normaliser_out_is_caught():
    """The published habit: weights p^(alpha − a) for answers that were drawn at temperature 1/a."""
    answers, law = pool("low_temperature", 2.0, 4000), exact(3.0)
    wrong = np.exp([answer.logp for answer in answers])

    def worst(weights):
        return np.abs(shares(answers, weights, law) - law.pi).max()

    assert worst(reweight(answers, 3.0).weights) < 0.03 < worst(wrong / wrong.sum())


def test_results_reweight_prompt_by_prompt():
    sampler = make_sampler("plain", alpha=2.0, max_new_tokens=HORIZON)
    results = generate(load(toy_models()["eos"]), [list(PROMPT), [1]], sampler, seed=0, chains=20)
    found = results.reweight(2.0)
    assert list(found) == [results[0].prompt_id, results[20].prompt_id]
    assert found[results[0].prompt_id].weights == pytest.approx(reweight(list(results[:20]), 2.0).weights)


def test_too_few_effective_answers_are_not_reliable():
    assert not reweight(pool("plain", 4.0, 2), 4.0).reliable
    assert reweight(pool("low_temperature", 2.0, 40), 2.0).ess > FEWEST


@pytest.mark.parametrize(
    ("answers", "alpha", "says"),
    [
        (lambda: [], 2.0, "empty pool"),
        (lambda: pool("mh", 2.0, 2), 2.0, "not independent draws"),
        (lambda: pool("plain", 2.0, 1), 0.0, "alpha must be"),
        (lambda: pool("plain", 2.0, 1), math.nan, "alpha must be"),
        (lambda: pool("plain", 2.0, 1) + pool("low_temperature", 3.0, 1), 2.0, "cannot be combined"),
        (lambda: pool("low_temperature", 2.0, 1) + pool("low_temperature", 3.0, 1), 2.0, "cannot be combined"),
    ],
)
def test_what_cannot_be_reweighted_is_refused(answers, alpha, says):
    with pytest.raises(ValueError, match=says):
        reweight(answers(), alpha)


def test_votes_by_weight_and_by_rank():
    answers = pool("plain", 2.0, 30)
    by_length = vote(answers, lambda a: len(a.token_ids))
    assert sum(by_length.shares.values()) == pytest.approx(1.0)
    assert by_length.share == max(by_length.shares.values())
    heavy = np.zeros(30)
    heavy[7] = 1.0
    assert vote(answers, lambda a: len(a.token_ids), heavy).answer == len(answers[7].token_ids)
    assert vote(answers, lambda a: None).answer is None
    ranks = rank_weights(answers)
    order = np.argsort([a.logp for a in answers], kind="stable")
    assert np.all(np.diff(ranks[order]) >= 0) and ranks.min() >= 0.75 and ranks.max() == pytest.approx(math.e)
    with pytest.raises(ValueError, match="not all 0"):
        vote(answers, lambda a: 1, np.zeros(30))
