"""At the same entropy a local move costs the same in long answers as in short ones; redrawing to the end does not."""

from __future__ import annotations

import pytest

from bench.bench_entropy_scaling import ALPHA, PROMPT, Decisions, expected_logp, per_move, run
from fastpower.samplers import EntropyGuided, MetropolisHastings
from fastpower.target import PowerTarget


def costs(cls, length: int, moves: int, chains: int = 3, **options) -> dict[str, float]:
    sampler = cls(PowerTarget(ALPHA, length), block=length, moves=moves, prefetch=1, **options)
    return per_move([run(Decisions(length), PROMPT, sampler, seed) for seed in range(chains)])


def test_local_moves_do_not_grow_with_the_answer():
    short, long = (costs(EntropyGuided, length, 60, window_share=0.999) for length in (64, 512))
    assert long["forwards"] < 1.5 * short["forwards"]
    assert long["decoded"] < 1.5 * short["decoded"]


@pytest.mark.parametrize("window", [1, 8, 50])
def test_what_is_redrawn_to_the_end_takes_no_more_steps_than_the_windows(window):
    for length in (window + 1, 64, 512, 100_000):
        suffixes = 1.0 - EntropyGuided(PowerTarget(ALPHA, length), window=window).share_of_windows(length)
        assert 0.0 < suffixes <= 1.0
        assert suffixes * length / 2.0 == pytest.approx((1.0 - suffixes) * (window + 1))
    assert EntropyGuided(PowerTarget(ALPHA, 64), window=window).share_of_windows(window) == 0.0


def test_moves_that_redraw_to_the_end_grow_with_it():
    short, long = costs(MetropolisHastings, 64, 10), costs(MetropolisHastings, 512, 10)
    assert long["forwards"] > 4.0 * short["forwards"]


def test_local_moves_reach_the_mean_log_probability_of_the_target():
    found = costs(EntropyGuided, 64, 150, chains=12)
    assert found["initial"] < expected_logp(ALPHA) - 1.0
    assert found["logp"] == pytest.approx(expected_logp(ALPHA), abs=1.0)
