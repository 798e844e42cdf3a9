"""Kept tails with several tries are exact: transition matrices, finite-N laws of the code, and what must be caught."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest

from fastpower.chains import Job
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.samplers import EntropyGuided, MultipleTry, window
from fastpower.samplers.cuts import (
    CutLaw,
    EntropyJumpCut,
    EntropyQuantileCut,
    EntropyThresholdCut,
    FixedHorizonCut,
    MixtureCut,
    UniformCut,
)
from fastpower.samplers.move import one_try
from fastpower.samplers.window import WindowKernel
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

from .enumeration import Enumeration, finite_law, g_test, toy_models, transition_matrix
from .kernels import multiple_try_matrix
from .runs import frequencies, outcomes
from .test_window import window_matrix
from .tries import MISTAKES, tries_matrix

ALPHA, SHARE, CHAINS = 2.5, 0.6, 1500
CUTS: dict[str, CutLaw] = {
    "uniform": UniformCut(),
    "fixed_horizon": FixedHorizonCut(),
    "jump": EntropyJumpCut(),
    "threshold": EntropyThresholdCut(0.6, window=0),
    "neighbourhood": EntropyThresholdCut(0.6, window=1),
    "quantile": EntropyQuantileCut(0.5),
    "mixture": MixtureCut((EntropyJumpCut(beta=1.0), UniformCut()), (0.7, 0.3)),
}


def models() -> dict[str, ToyDecoder]:
    """Those of the other tests, and two with two tokens beside the end, for long windows."""
    return {
        **toy_models(),
        "long": ToyDecoder(random_logits(2, 11, scale=1.5), 2, []),
        "long_eos": ToyDecoder(random_logits(3, 12, eos=2, eos_bias=-1.0, scale=1.5), 3, [2]),
    }


def assert_invariant(space: Enumeration, matrix: np.ndarray) -> None:
    flow = space.pi[:, None] * matrix
    assert matrix.min() > -1e-13
    assert np.abs(flow - flow.T).max() < 1e-13
    assert np.abs(space.pi @ matrix - space.pi).max() < 1e-13


LONG = [
    pytest.param(name, tries, w, marks=pytest.mark.slow if (name, tries, w) == ("long_eos", 4, 5) else ())
    for name in ("long", "long_eos")
    for tries in (1, 2, 4)
    for w in (2, 5, 7)
]

# -- enumeration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toy_models())
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("tries", [1, 2, 4])
def test_kept_tails_leave_the_power_distribution_invariant(name, cut, tries):
    space = Enumeration(models()[name], ALPHA, 3)
    for w in (1, 2):
        matrix = tries_matrix(space, cut, tries, w)
        assert_invariant(space, matrix)
        assert (matrix - np.diag(np.diag(matrix))).any(), "no window move is possible: nothing is tested"


@pytest.mark.parametrize("name, tries, w", LONG)
def test_long_windows_leave_it_invariant_and_windows_longer_than_the_answer_stay(name, tries, w):
    space = Enumeration(models()[name], ALPHA, 6)
    matrix = tries_matrix(space, CUTS["neighbourhood"], tries, w)
    assert_invariant(space, matrix)
    for i, x in enumerate(space.answers):
        assert len(x) > w or matrix[i, i] == 1.0


def test_the_matrices_agree_with_those_made_otherwise():
    space = Enumeration(models()["eos"], ALPHA, 3)
    for cut in CUTS.values():
        assert np.abs(tries_matrix(space, cut, 1) - transition_matrix(space, cut.probabilities)).max() < 1e-14
        assert np.abs(tries_matrix(space, cut, 1, 1) - window_matrix(space, cut, 1)).max() < 1e-14
    several = multiple_try_matrix(space, UniformCut().probabilities, lambda h: 2)
    assert np.abs(tries_matrix(space, UniformCut(), 2) - several).max() < 1e-14


def test_the_number_of_tries_may_depend_on_the_entropy_at_the_cut():
    space = Enumeration(models()["eos"], ALPHA, 3)
    matrix = tries_matrix(space, CUTS["threshold"], lambda h: 3 if h >= 0.6 else 1, 1)
    assert_invariant(space, matrix)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("tries", [1, 2, 4])
def test_a_mistaken_matrix_is_not_stationary(mistake, tries):
    if mistake == "reference set wrong" and tries == 1:
        return  # one try has no reference but x
    space = Enumeration(models()["modes"], 1.2, 3)  # ends, and entropies that depend on what precedes
    matrix = tries_matrix(space, CUTS["threshold"], tries, 1, mistake=mistake)
    assert np.abs(space.pi @ matrix - space.pi).max() > 1e-3


# -- the real code ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneSuffix(MultipleTry):
    """Several tries in windows only: what redraws the suffix has one, so that long answers can be enumerated."""

    mistake: type[WindowKernel] = WindowKernel

    def kernel(self, horizon):
        return dataclasses.replace(super().kernel(horizon), tries=one_try)

    def window_kernel(self, horizon):
        right = super().window_kernel(horizon)
        settings = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
        plain = self.mistake is WindowKernel
        return self.mistake(**settings | {"early_rejection": plain and right.early_rejection})


def p_value(
    name, horizon, cut, tries, w, *, cls=OneSuffix, alpha=ALPHA, chains=CHAINS, share=SHARE, moves=2, **options
) -> float:
    sampler = cls(
        PowerTarget(alpha, horizon), horizon - 1, moves, cut, tries=tries, window=w, window_share=share, **options
    )
    suffix_tries = 1 if cls is OneSuffix else tries

    def mixed(space: Enumeration) -> np.ndarray:
        return share * tries_matrix(space, cut, tries, w) + (1.0 - share) * tries_matrix(space, cut, suffix_tries)

    space, law = finite_law(models()[name], alpha, [horizon - 1, horizon], mixed, moves)
    return g_test(frequencies(models()[name], sampler, chains), space.answers, law)


@pytest.mark.parametrize("name", ["no_eos", "eos", "zero"])
@pytest.mark.parametrize("tries", [1, 2, 4])
@pytest.mark.parametrize("w", [1, 2])
def test_real_code_with_kept_tails_follows_its_finite_law(name, tries, w):
    assert p_value(name, 4, CUTS["neighbourhood"], tries, w) > 1e-3


@pytest.mark.parametrize(
    "name, tries",
    [("long_eos", 1), ("long_eos", 2), ("long", 4), pytest.param("long_eos", 4, marks=pytest.mark.slow)],
)
def test_real_code_with_long_windows_follows_its_finite_law(name, tries):
    """At the first stage windows are as long as the answers, and answers that end early are shorter."""
    assert p_value(name, 6, UniformCut(), tries, 5) > 1e-3


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_real_code_with_kept_tails_follows_the_finite_law_of_every_cut_law(cut):
    assert p_value("eos", 3, cut, 2, 1, cls=MultipleTry) > 1e-3


def test_real_code_of_the_entropy_guided_sampler_follows_its_finite_law():
    """As it comes, but for what a toy of four tokens needs: its neighbourhood, its tries and the kept tails."""
    sampler = EntropyGuided(
        PowerTarget(ALPHA, 4), block=4, moves=3, tries=3, threshold=0.6, neighbourhood=1, window=1, block_threshold=0.0
    )
    decoder, cut = models()["eos"], EntropyThresholdCut(0.6, window=1)
    assert sampler.cut == cut
    share = sampler.share_of_windows(4)
    assert share == pytest.approx(0.5)

    def tries(h: float) -> int:
        return 3 if h >= 0.6 else 1

    def mixed(space: Enumeration) -> np.ndarray:
        return share * tries_matrix(space, cut, tries, 1) + (1.0 - share) * tries_matrix(space, cut, tries)

    space, law = finite_law(decoder, ALPHA, [4], mixed, 3)
    assert g_test(frequencies(decoder, sampler, CHAINS), space.answers, law) > 1e-3


# -- negative controls: the code with one change ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TailLeftOut(WindowKernel):
    def log_acceptance(self, x, y, plan):
        end = self.end(plan.cut)
        stale = dataclasses.replace(y, logp=np.concatenate([y.logp[:end], x.logp[end:]]))
        return WindowKernel.log_acceptance(self, x, stale, plan)


@dataclass(frozen=True, slots=True)
class LawOfTheFullLength(WindowKernel):
    def log_acceptance(self, x, y, plan):
        right = WindowKernel.log_acceptance(self, x, y, plan)
        if plan.difference is None:
            return right
        for answer, sign in ((y, -1.0), (x, 1.0)):
            right += sign * self.cut.log_probability(self.cuttable(answer), plan.cut, self.horizon)
            right -= sign * self.cut.log_probability(answer.entropy, plan.cut, self.horizon)
        return right


@dataclass(frozen=True, slots=True)
class EndInTheWindowAccepted(WindowKernel):
    def candidates(self, chain, x, move, suffixes):
        found = yield from WindowKernel.candidates(self, chain, x, move, suffixes)
        return [
            x.spliced(plan.difference, suffix) if y is None else y
            for y, plan, suffix in zip(found, move.plans, suffixes, strict=True)
        ]

    def log_acceptance(self, x, y, plan):
        if len(y) == len(x):
            return WindowKernel.log_acceptance(self, x, y, plan)
        tail = plan.difference + 1
        return float(y.logz[tail:, 0].sum() - x.logz[tail:, 0].sum()) - math.log(len(y) / len(x))


@dataclass(frozen=True, slots=True)
class ReferenceSetWrong(WindowKernel):
    def choose(self, chain, x, move, candidates):
        y, _ = WindowKernel.choose(self, chain, x, move, candidates)
        chosen = next((j for j, other in enumerate(candidates) if other is y), None)
        if y is None or chosen is None:
            return y, -math.inf
        return y, self.log_acceptance(x, y, move.plans[chosen])


CONTROLS = {
    "tail left out": (TailLeftOut, "long", ALPHA),
    "law of the full length": (LawOfTheFullLength, "long", 1.2),
    "end in the window accepted": (EndInTheWindowAccepted, "eos", ALPHA),
    "reference set wrong": (ReferenceSetWrong, "long", 1.2),
}
LAW = EntropyThresholdCut(0.6, window=0)


@pytest.mark.parametrize("mistake, name, alpha", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_mistake_in_the_code_is_caught(mistake, name, alpha):
    settings = {"alpha": alpha, "share": 0.9, "moves": 4, "chains": 2400}
    assert p_value(name, 3, LAW, 2, 1, mistake=mistake, **settings) < 1e-6


def test_the_right_code_passes_where_mistakes_are_caught():
    assert p_value("long", 3, LAW, 2, 1, alpha=1.2, share=0.9, moves=4, chains=2400) > 1e-3


# -- lossless --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slowly() -> dict[str, list]:
    """Chains without any acceleration."""
    return {name: _bits(sampler, early_rejection=False, skip=False, prefetch=1) for name, sampler in SAMPLERS.items()}


SAMPLERS = {
    "one try": MultipleTry(PowerTarget(3.0, 14), 7, 5, tries=1, window=2, window_share=0.7),
    "four tries": MultipleTry(PowerTarget(3.0, 14), 7, 5, tries=4, window=2, window_share=0.7),
    "egps": EntropyGuided(PowerTarget(3.0, 14), 7, 5, tries=3, window=3),
    "below one": MultipleTry(PowerTarget(0.7, 14), 7, 5, tries=2, window=2),
}


def _bits(sampler, *, max_rows: int = 64, **options) -> list:
    found = []
    for decoder in models().values():
        for run in outcomes(decoder, dataclasses.replace(sampler, **options), 5, max_rows=max_rows):
            numbers = [array.tobytes() for array in (run.record.logp, run.record.logz, run.record.entropy)]
            found.append((run.record.tokens, *numbers, run.trace))
    return found


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("first, growth", [(1, 2), (16, 8)])
@pytest.mark.parametrize("options", [{}, {"prefetch": 4}, {"early_rejection": False}], ids=str)
def test_pieces_of_tails_and_batch_sizes_change_no_bit(slowly, monkeypatch, name, rows, first, growth, options):
    monkeypatch.setattr(window, "_FIRST_PIECE", first)
    monkeypatch.setattr(window, "_GROWTH", growth)
    assert _bits(SAMPLERS[name], max_rows=rows, **options) == slowly[name]


@pytest.mark.parametrize("tries", [1, 4])
def test_tails_behind_all_windows_are_scored_in_one_forward(tries):
    decoder = models()["no_eos"]
    sampler = MultipleTry(PowerTarget(1.5, 12), 12, 15, tries=tries, window=2, window_share=0.9, prefetch=1)
    sampler = dataclasses.replace(sampler, early_rejection=False)
    scheduler = Scheduler(decoder)
    [finished] = scheduler.run([Job(sampler, (0,), 3)])
    windows = sum("window" in event for event in finished.outcome.trace)
    assert 5 < scheduler.totals.scorings <= windows


def test_a_window_that_breaks_what_follows_is_dropped_after_a_few_tokens(monkeypatch):
    monkeypatch.setattr(window, "_FIRST_PIECE", 2)

    def logits(prefix):  # a choice at every tenth position, and all that follows it depends on it
        off = [0.0, 0.0, 0.0, 0.0]
        off[(sum(prefix[-2:]) + 1) % 4] = 6.0
        return [0.0, 0.2, 0.1, -0.3] if len(prefix) % 10 == 0 else off

    decoder = ToyDecoder(logits, 4, [])
    cut = EntropyThresholdCut(1.0, window=0)
    sampler = MultipleTry(PowerTarget(2.0, 60), 60, 20, cut, tries=2, window=2, window_share=0.9)
    fast = outcomes(decoder, sampler, 4)
    rows = decoder.rows
    slow = outcomes(decoder, dataclasses.replace(sampler, early_rejection=False), 4)
    assert [run.trace for run in fast] == [run.trace for run in slow]
    assert rows < 0.7 * (decoder.rows - rows)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EntropyGuided(neighbourhood=-1), "neighbourhood must be"),
        (lambda: EntropyGuided(window=-1), "window must be"),
        (lambda: EntropyGuided(window_share="most"), "window_share must lie"),
        (lambda: MultipleTry(window_share=0.0), "window_share must lie"),
        (lambda: MultipleTry(maximise=True), "maximise compares one try"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
