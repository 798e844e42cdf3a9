"""Resample–move leaves E[Ẑ 1{x}] = p(x)^α, with and without a ramp; a move that forgets the look-ahead does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastpower.decoders.toy import ToyDecoder
from fastpower.samplers import PowerSMC, make_sampler, rejuvenate, smc
from fastpower.target import PowerTarget

from .enumeration import Enumeration, branches, toy_models
from .runs import outcomes
from .test_population_mistakes import z_scores

ALPHA, HORIZON = 2.0, 3


def scores(decoder: ToyDecoder, schedule=(), count: int = 1500, **settings) -> tuple[np.ndarray, list]:
    """(E[Ẑ 1{answer = x}] − p(x)^α) / standard error of every answer, and the runs."""
    settings = {"particles": 3, "threshold": 1.0, "block": 1, "ramp": 0, "moves": 2} | settings
    runs = outcomes(decoder, PowerSMC(PowerTarget(ALPHA, HORIZON, schedule), **settings), count)
    z = np.exp([run.diagnostics["log_z"] for run in runs])
    space = Enumeration(decoder, ALPHA, HORIZON)
    total = (z.mean() - math.exp(space.log_norm)) / (z.std(ddof=1) / math.sqrt(len(z)) + 1e-12)
    return np.append(z_scores(space, [tuple(run.record.tokens) for run in runs], z), total), runs


@pytest.mark.parametrize("model", ["eos", "zero", "modes"])
@pytest.mark.parametrize("schedule", [(), ((0, 1.0), (2, 2.0))], ids=["alpha", "ramp"])
def test_moves_at_every_check_leave_the_weight_of_every_answer(model, schedule):
    found, runs = scores(toy_models()[model], schedule)
    assert np.abs(found).max() < 4.5, found
    assert any(line.get("moved", 0) > 0 for run in runs for line in run.trace)


def test_moves_on_strongly_branching_weights_are_right_and_without_the_look_ahead_are_caught(monkeypatch):
    assert np.abs(scores(branches())[0]).max() < 4.5
    right = rejuvenate.log_acceptance
    monkeypatch.setattr(rejuvenate, "log_acceptance", lambda x, y, m, column, ahead: right(x, y, m, column, 0.0))
    assert np.abs(scores(branches())[0]).max() > 6.0


def test_moves_made_only_after_a_resampling_are_caught(monkeypatch):
    """Whether there was one depends on the particles: then they are no draws of what the move leaves invariant."""
    right = smc.rejuvenate

    def after_resampling(chain, particles, *rest):
        if particles.log_weights.any():
            return 0
        return (yield from right(chain, particles, *rest))

    monkeypatch.setattr(smc, "rejuvenate", after_resampling)
    assert np.abs(scores(toy_models()["eos"])[0]).max() > 6.0


def test_settings_are_checked():
    with pytest.raises(ValueError, match="moves must be ≥ 0"):
        make_sampler("smc", moves=-1)
