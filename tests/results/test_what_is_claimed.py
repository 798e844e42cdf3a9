"""Results claim what is so: exact where the law is p^alpha, moves that were made, numbers of the rung that answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastpower import generate, load, make_sampler
from fastpower.decoders.toy import ToyDecoder
from fastpower.evaluate.statistics import paired_bootstrap
from fastpower.results import diagnostics
from fastpower.samplers import EntropyGuided, MetropolisHastings, ParallelTempering
from fastpower.samplers.cuts import (
    CutLaw,
    EntropyJumpCut,
    EntropyQuantileCut,
    EntropyThresholdCut,
    FixedHorizonCut,
    MixtureCut,
    UniformCut,
)
from fastpower.target import PowerTarget
from tests.evaluate.toys import toy_model

TARGET = PowerTarget(2.5, 11)
NEVER = FixedHorizonCut()


def test_chains_that_stand_still_apart_have_infinite_r_hat_in_the_summary() -> None:
    results = list(generate(toy_model(), ["1 2"], make_sampler("mh", alpha=2.5, max_new_tokens=11, moves=6), chains=2))
    still = [
        replace(r, trace=[event | {"logp": -float(i), "horizon": 11} for event in r.trace])
        for i, r in enumerate(results)
    ]
    assert diagnostics.summary(still)["rhat"] == float("inf")


def test_temperings_numbers_are_the_answering_rungs() -> None:
    model: Any = toy_model()
    sampler = ParallelTempering(TARGET, block=11, moves=4)
    result = generate(model, ["1 2"], sampler, seed=1)[0]
    for i in range(len(result.token_ids)):
        logp = model.decoder.log_probabilities([1, 2, *result.token_ids[:i]])
        assert result.token_logz[i] == pytest.approx(np.logaddexp.reduce(2.5 * logp), abs=1e-5)
    last = [event for event in result.trace if event["rung"] == len(sampler.rungs) - 1]
    assert (result.moves, result.accepted) == (len(last), sum(event["accepted"] for event in last))


@pytest.mark.parametrize(
    "particles, islands, alpha, exact", [(1, 1, 2.5, 0), (1, 4, 2.5, 1), (4, 1, 2.5, 1), (1, 1, 1.0, 1)]
)
def test_one_particle_is_no_population(particles: int, islands: int, alpha: float, exact: int) -> None:
    options: Any = {"particles": particles, "islands": islands, "alpha": alpha, "max_new_tokens": 9}
    assert generate(toy_model(), ["1 2"], make_sampler("smc", **options))[0].exact == bool(exact)


@pytest.mark.parametrize(
    "cut, exact",
    [
        (UniformCut(), True),
        (FixedHorizonCut(), True),
        (EntropyJumpCut(epsilon=0.0), True),  # the first position that is open always rises from 0
        (EntropyThresholdCut(), True),
        (EntropyThresholdCut(epsilon=0.0), False),
        (EntropyThresholdCut(threshold=0.0, epsilon=0.0), True),
        (EntropyQuantileCut(epsilon=0.0), False),
        (MixtureCut((EntropyQuantileCut(epsilon=0.0), EntropyThresholdCut(epsilon=0.0)), (1.0, 1.0)), False),
        (MixtureCut((EntropyQuantileCut(epsilon=0.0), UniformCut()), (1.0, 1.0)), True),
    ],
)
@pytest.mark.parametrize("method", ["mh", "ec_mh", "mtm", "egps", "tempering"])
def test_a_cut_law_that_cannot_reach_every_answer_is_not_exact(method: str, cut: CutLaw, exact: bool) -> None:
    sampler = make_sampler(method, alpha=2.5, max_new_tokens=6, moves=1, cut=cut)
    assert generate(toy_model(), ["1 2"], sampler)[0].exact is exact


@pytest.mark.parametrize("method", ["mh", "mtm", "egps", "tempering"])
def test_a_move_without_a_cut_is_not_accepted_by_any_sampler(method: str) -> None:
    sampler = make_sampler(method, alpha=2.5, max_new_tokens=11, moves=12, block=11, cut=NEVER)
    events = [event for r in generate(toy_model(), ["1 2"], sampler, chains=4) for event in r.trace]
    uncut = [event["accepted"] for event in events if event["cut"] is None]
    assert uncut and not any(uncut)


def test_egps_threshold_reaches_its_cut_law() -> None:
    assert EntropyGuided(threshold=1.5).cut == EntropyThresholdCut(1.5, window=2)
    assert EntropyGuided(threshold=1.5, neighbourhood=0).cut == EntropyThresholdCut(1.5, window=0)
    assert EntropyGuided(cut=EntropyThresholdCut(0.7, window=0)).cut == EntropyThresholdCut(0.7, window=0)
    assert EntropyGuided(threshold=1.5, cut=UniformCut()).cut == UniformCut()
    assert MetropolisHastings().cut == UniformCut()


def test_a_bootstrap_is_never_certain_and_warns_of_few_problems() -> None:
    right = [{"problem": i, "correct": True} for i in range(30)]
    wrong = [{"problem": i, "correct": False} for i in range(30)]
    assert paired_bootstrap(right, wrong, resamples=999).p_value == pytest.approx(2 / 1000)
    with pytest.warns(UserWarning, match="over 8 problems: below 20"):
        paired_bootstrap(right[:8], wrong)


def test_conditional_smc_accepts_another_particle_whatever_its_tokens() -> None:
    """Where every answer is the same, another particle of N is drawn in all but one of N moves, as elsewhere: MH, too,
    counts a proposal of what is there already."""
    certain = load(ToyDecoder(lambda prefix: [0.0, -60.0], 2, [1]))
    results = generate(certain, [[0]], "csmc(particles=4, moves=8)", seed=1, chains=60, max_new_tokens=3)
    assert {tuple(r.token_ids) for r in results} == {(0, 0, 0)}
    share = sum(r.accepted for r in results) / sum(r.moves for r in results)
    assert abs(share - 3 / 4) < 0.08  # 480 moves: a standard error of 0.02
