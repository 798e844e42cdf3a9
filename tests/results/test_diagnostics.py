"""Diagnostics against values worked out by hand, by ArviZ, and by enumeration of a toy model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import fastpower
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.results import Result, diagnostics
from fastpower.samplers import MetropolisHastings, ParallelTempering, Plain, PowerSMC
from fastpower.target import PowerTarget

HORIZON = 6


def made(**given) -> Result:
    """A result with the given fields."""
    fields = {
        "id": "x", "prompt_id": "p", "chain": 0, "method": "mh", "alpha": 2.0, "max_new_tokens": HORIZON, "seed": 0,
        "text": "", "token_ids": [1, 2], "logp": -1.0, "token_logp": [], "token_logz": [], "entropy": [1.0, 0.5],
        "ended": True, "exact": True, "complete": True, "moves": 0, "accepted": 0, "acceptance": None,
        "decoded_tokens": 0, "forwards": 0.0, "prefill_tokens": 0.0, "seconds": 0.0,
    }  # fmt: skip
    return Result(**{**fields, **given})


def moved(*moves: tuple, **given) -> Result:
    """A run with moves (horizon, cut, accepted, length, log p)."""
    names = ("horizon", "cut", "accepted", "length", "logp")
    return made(trace=[dict(zip(names, move, strict=True)) for move in moves], **given)


@pytest.fixture(scope="module")
def model():
    return fastpower.load(ToyDecoder(random_logits(4, 5, eos=3, eos_bias=-1.0), 4, [3]))


@pytest.fixture(scope="module")
def chains(model):
    sampler = MetropolisHastings(PowerTarget(2.0, HORIZON), block=3, moves=25)
    return fastpower.generate(model, [[0], [1]], sampler, chains=4, seed=2)


def test_rhat_is_that_of_arviz(chains):
    arviz = pytest.importorskip("arviz")
    rng = np.random.default_rng(0)
    ties = np.round(rng.normal(size=(3, 41)), 1)
    shifted = rng.normal(size=(4, 30)) + np.array([[0.0], [0.0], [0.0], [2.0]])
    scaled = rng.normal(size=(4, 30)) * np.array([[1.0], [1.0], [1.0], [5.0]])
    for draws in (ties, shifted, scaled):
        assert diagnostics.split_rhat(draws) == pytest.approx(float(arviz.rhat(draws)), abs=1e-9)
    for prompt, value in diagnostics.rhat(chains).items():
        draws = [[m["logp"] for m in diagnostics.moves(r)] for r in chains if r.prompt_id == prompt]
        assert value == pytest.approx(float(arviz.rhat(np.array(draws))), abs=1e-9)


def test_rhat_tells_chains_that_agree_from_chains_that_do_not():
    rng = np.random.default_rng(1)
    same, apart = rng.normal(size=(4, 200)), rng.normal(size=(4, 200)) + np.arange(4)[:, None]
    for draws, close in ((same, True), (apart, False)):
        runs = [moved(*((HORIZON, 0, True, 2, v) for v in row), chain=i) for i, row in enumerate(draws)]
        [value] = diagnostics.rhat(runs).values()
        assert (value < 1.02) == close and (value > 1.2) != close
    frozen = [moved(*[(HORIZON, 0, False, 2, float(i))] * 6, chain=i) for i in range(2)]
    assert diagnostics.rhat(frozen) == {"p": math.inf}
    still = [moved(*[(HORIZON, 0, False, 2, -1.0)] * 6, chain=i) for i in range(2)]
    assert math.isnan(diagnostics.rhat(still)["p"])


def test_rhat_refuses_what_it_cannot_be_computed_from(model, chains):
    with pytest.raises(ValueError, match="2 chains of 4 moves"):
        diagnostics.rhat(fastpower.generate(model, [[0]], Plain(PowerTarget(2.0, HORIZON)), chains=3))
    with pytest.raises(ValueError, match="between 4 and 5 moves"):
        diagnostics.rhat([moved(*[(HORIZON, 0, True, 2, -1.0)] * n, chain=n) for n in (4, 5)])


def test_moves_leave_out_warm_up_stages_and_other_rungs(model, chains):
    assert all(len(diagnostics.moves(result)) == 25 for result in chains)
    assert any(len(result.trace) > 25 for result in chains), "no chain had a warm-up stage"
    ladder = ParallelTempering(PowerTarget(4.0, HORIZON), block=3, moves=5)
    [result] = fastpower.generate(model, [[0]], ladder)
    assert len(diagnostics.moves(result)) == 5


def test_acceptance_by_position_and_over_moves():
    runs = [
        moved((HORIZON, 0, True, 4, -1.0), (HORIZON, 3, False, 4, -1.0)),
        moved((HORIZON, 2, True, 4, -1.0), (HORIZON, 3, True, 4, -2.0), (HORIZON, None, True, 4, -2.0)),
    ]
    rates, counts = diagnostics.acceptance_by_position(runs, bins=4)
    assert counts.tolist() == [1, 0, 1, 2]
    np.testing.assert_array_equal(rates, [1.0, np.nan, 1.0, 0.5])
    rates, counts = diagnostics.acceptance_over_moves(runs)
    assert counts.tolist() == [2, 2, 1] and rates.tolist() == [1.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="bins must be at least 1"):
        diagnostics.acceptance_by_position(runs, bins=0)


def test_ess_ancestors_and_evidence_of_a_population(model):
    sampler = PowerSMC(PowerTarget(2.0, HORIZON), particles=8, threshold=1.0, block=2, ramp=0)
    results = fastpower.generate(model, [[0]], sampler, chains=400)
    events = [event for event in results[0].trace if event["resampled"]]
    assert diagnostics.ancestors_trace(results[0]) == [(e["position"], e["unique_ancestors"]) for e in events]
    assert all(1.0 <= ess <= 8.0 + 1e-9 for result in results for _, ess, _ in diagnostics.ess_trace(result))
    exact = np.logaddexp.reduce([2.0 * logp for logp in model.decoder.records([0], HORIZON).values()])
    [(value, error)] = diagnostics.log_z(results).values()
    assert 0.0 < error < 0.1 and abs(value - exact) < 4 * error
    assert math.isnan(diagnostics.log_z(results[:1])[results[0].prompt_id][1])


def test_entropy_by_position_and_hit_cap_rate():
    runs = [made(entropy=[1.0, 0.5]), made(entropy=[2.0], ended=False), made(entropy=[3.0, 1.5, 0.1])]
    mean, count = diagnostics.entropy_by_position(runs)
    assert mean.tolist() == [2.0, 1.0, 0.1] and count.tolist() == [3, 2, 1]
    assert diagnostics.hit_cap_rate(runs) == pytest.approx(1 / 3)
    assert math.isnan(diagnostics.hit_cap_rate([]))


def test_savings_add_up_over_runs(chains):
    totals = diagnostics.savings(chains)
    assert totals["forwards"] == pytest.approx(sum(r.forwards for r in chains)) and totals["shared_rows"] > 0
    assert totals["skipped_tokens"] == sum(r.diagnostics["skipped_tokens"] for r in chains) > 0
    assert totals["resumed_tokens"] == pytest.approx(sum(r.savings["resumed_tokens"] for r in chains))


def test_summary_is_json_and_of_one_method(model, chains):
    report = json.loads(json.dumps(diagnostics.summary(chains), allow_nan=False))
    assert report["answers"] == 8 and report["prompts"] == 2 and report["moves"] == sum(r.moves for r in chains)
    assert report["acceptance"] == pytest.approx(sum(r.accepted for r in chains) / report["moves"])
    assert report["rhat"] == max(diagnostics.rhat(chains).values())
    assert report["least_ess"] is None and report["log_z"] == {}
    smc = fastpower.generate(model, [[0]], PowerSMC(PowerTarget(2.0, HORIZON), particles=4, block=2, ramp=0))
    report = diagnostics.summary(smc)
    assert report["rhat"] is None and 0.0 < report["least_ess"] <= 1.0 and len(report["log_z"]) == 1
    with pytest.raises(ValueError, match="one method, got mh, smc"):
        diagnostics.summary([*chains, *smc])
    with pytest.raises(ValueError, match="got none"):
        diagnostics.summary([])
