"""The window move with kept tail is exact: transition matrix, finite-N law of the code, and the mistake it invites."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest

from fastpower.samplers import MetropolisHastings
from fastpower.samplers.cuts import CutLaw, EntropyJumpCut, EntropyThresholdCut, UniformCut
from fastpower.samplers.window import WindowKernel
from fastpower.target import PowerTarget

from .enumeration import Enumeration, finite_law, g_test, toy_models, transition_matrix
from .runs import frequencies, outcomes

MODELS = ["eos", "no_eos", "deterministic", "zero", "modes"]
ALPHA, SHARE, CHAINS = 2.5, 0.6, 1500
CUTS: dict[str, CutLaw] = {
    "uniform": UniformCut(),
    "jump": EntropyJumpCut(),
    "near": EntropyThresholdCut(0.6, window=1),
}


def window_matrix(space: Enumeration, cut: CutLaw, w: int, *, rescored: bool = True) -> np.ndarray:
    """P(x, y) of one window move. rescored=False forgets that the tail has another probability after another window."""
    n = len(space.answers)
    matrix = np.zeros((n, n))
    for i, x in enumerate(space.answers):
        if len(x) > w:
            law = cut.probabilities(space.entropy(x)[: len(x) - w], space.horizon)
            for m in range(len(x) - w):
                for j, y in enumerate(space.answers):
                    if i == j or len(y) != len(x) or y[:m] != x[:m] or y[m + w :] != x[m + w :]:
                        continue
                    back = cut.probabilities(space.entropy(y)[: len(y) - w], space.horizon)
                    forward, backward = log_q(space, y, m, m + w), log_q(space, x, m, m + w)
                    log_ratio = math.log(back[m] / law[m])
                    if rescored:
                        log_ratio += ALPHA * (space.logp[y] - space.logp[x]) + backward - forward
                    else:
                        log_ratio += space.log_z_sum(y, m, m + w) - space.log_z_sum(x, m, m + w)
                    matrix[i, j] += law[m] * math.exp(forward + min(0.0, log_ratio))
        matrix[i, i] = 1.0 - matrix[i].sum()
    return matrix


def log_q(space: Enumeration, x: tuple[int, ...], start: int, stop: int) -> float:
    """log q of the tokens start … stop − 1."""
    logp = sum(float(space.conditional(x[:t])[x[t]]) for t in range(start, stop))
    return ALPHA * logp - space.log_z_sum(x, start, stop)


def mixed(space: Enumeration, cut: CutLaw, w: int, **options) -> np.ndarray:
    suffixes = transition_matrix(space, cut.probabilities)
    return SHARE * window_matrix(space, cut, w, **options) + (1.0 - SHARE) * suffixes


@pytest.fixture(scope="module")
def models():
    return toy_models()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_window_moves_leave_the_power_distribution_invariant(models, name, cut):
    space = Enumeration(models[name], ALPHA, 3)
    for w in (1, 2):
        matrix = window_matrix(space, cut, w)
        flow = space.pi[:, None] * matrix
        assert matrix.min() > -1e-13
        assert np.abs(flow - flow.T).max() < 1e-14
        assert np.abs(space.pi @ matrix - space.pi).max() < 1e-14
        assert (matrix - np.diag(np.diag(matrix))).any(), "no window move is possible: nothing is tested"


def test_a_tail_that_is_not_scored_again_is_not_stationary(models):
    space = Enumeration(models["no_eos"], ALPHA, 3)
    assert np.abs(space.pi @ window_matrix(space, UniformCut(), 1, rescored=False) - space.pi).max() > 1e-3


def sampler(cut: CutLaw, w: int, cls: type = MetropolisHastings, **options) -> MetropolisHastings:
    return cls(PowerTarget(ALPHA, 4), block=2, moves=3, cut=cut, window=w, window_share=SHARE, **options)


@pytest.mark.parametrize(
    "name, cut, w",
    [
        ("no_eos", UniformCut(), 1),
        ("zero", UniformCut(), 1),
        ("eos", UniformCut(), 2),
        ("zero", CUTS["jump"], 1),
    ],
)
def test_real_code_with_window_moves_follows_the_finite_n_law(models, name, cut, w):
    space, law = finite_law(models[name], ALPHA, [2, 4], lambda s: mixed(s, cut, w), 3)
    assert g_test(frequencies(models[name], sampler(cut, w), CHAINS), space.answers, law) > 1e-3


@dataclass(frozen=True, slots=True)
class TailForgotten(WindowKernel):
    """The tail keeps the numbers it had after another window."""

    def log_acceptance(self, x, y, plan):
        end = plan.cut + self.window
        stale = dataclasses.replace(y, logp=np.concatenate([y.logp[:end], x.logp[end:]]))
        return WindowKernel.log_acceptance(self, x, stale, plan)


class Forgetful(MetropolisHastings):
    def window_kernel(self, horizon):
        alpha = self.target.alpha
        return TailForgotten(alpha, horizon, self.cut, (alpha,), early_rejection=False, window=self.window)


def test_code_that_forgets_to_score_the_tail_is_caught(models):
    space, law = finite_law(models["no_eos"], ALPHA, [2, 4], lambda s: mixed(s, UniformCut(), 1), 3)
    assert g_test(frequencies(models["no_eos"], sampler(UniformCut(), 1, Forgetful), CHAINS), space.answers, law) < 1e-6


@pytest.mark.parametrize("options", [{"skip": False}, {"early_rejection": False}, {"prefetch": 4}])
def test_accelerations_change_no_bit_of_chains_with_window_moves(models, options):
    target = PowerTarget(3.0, 8)
    settings = {"block": 4, "moves": 5, "window": 2, "window_share": 0.7}
    for name in MODELS:
        plain = outcomes(models[name], MetropolisHastings(target, **settings), 12)
        other = outcomes(models[name], MetropolisHastings(target, **settings, **options), 12, max_rows=5)
        assert [(a.record.tokens, a.record.logp.tobytes(), a.trace) for a in plain] == [
            (b.record.tokens, b.record.logp.tobytes(), b.trace) for b in other
        ]


def test_numbers_after_a_window_are_those_of_the_answer(models):
    runs = outcomes(models["eos"], sampler(UniformCut(), 1), 200)
    moved = [run for run in runs if run.trace[-1].get("window") and run.trace[-1]["accepted"]]
    assert len(moved) > 20
    space = Enumeration(models["eos"], ALPHA, 4)
    for run in moved:
        x = tuple(run.record.tokens)
        assert run.record.total_logp == pytest.approx(space.logp[x], abs=1e-5)
        assert run.record.entropy == pytest.approx(space.entropy(x), abs=1e-5)
        assert run.record.logz[:, 0] == pytest.approx([space.logz(x[:t]) for t in range(len(x))], abs=1e-5)


@pytest.mark.parametrize(
    "options, message", [({"window": -1}, "window must be"), ({"window_share": 1.0}, "window_share")]
)
def test_bad_windows_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MetropolisHastings(**options)
