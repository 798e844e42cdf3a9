"""Stop strings are part of the target, exactly: they overlap token borders, and every sampler ends answers at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastpower.chains.stopping import Stopping, before_stop
from fastpower.samplers import (
    AuxiliaryParticles,
    BestOfN,
    ConditionalSMC,
    EntropyCut,
    EntropyGuided,
    LowTemperature,
    MetropolisHastings,
    MultipleTry,
    ParallelTempering,
    ParticleMH,
    Plain,
    PowerSMC,
)
from fastpower.samplers.cuts import EntropyJumpCut, EntropyThresholdCut, UniformCut
from fastpower.target import PowerTarget

from .enumeration import Answer, g_test, transition_matrix
from .kernels import multiple_try_matrix
from .runs import frequencies, outcomes
from .stopped import PIECES, STOP, Stopped, spelling
from .test_window import mixed

ALPHA, HORIZON, CHAINS = 2.5, 3, 1500
TARGET = PowerTarget(ALPHA, HORIZON, stop=STOP)


@pytest.fixture(scope="module")
def model():
    return spelling()


@pytest.fixture(scope="module")
def space(model) -> Stopped:
    found = Stopped(model, ALPHA, HORIZON)
    ends = {tuple(PIECES[t] for t in x) for x in found.answers if any(s in model.decode(x) for s in STOP)}
    assert {("b", "a"), ("b", "ab"), ("ab", "ab"), ("a", "ab")} <= ends, "no stop string overlaps a border"
    return found


def after(space: Stopped, matrix: np.ndarray, moves: int) -> np.ndarray:
    """The law after ``moves`` from q."""
    law = np.array([math.exp(space.log_q(x, 0)) for x in space.answers])
    assert abs(law.sum() - 1.0) < 1e-9
    return law @ np.linalg.matrix_power(matrix, moves)


def assert_reversible(space: Stopped, matrix: np.ndarray) -> None:
    flow = space.pi[:, None] * matrix
    assert np.abs(flow - flow.T).max() < 1e-14 and np.abs(matrix.sum(1) - 1).max() < 1e-13


@pytest.mark.parametrize("cut", [UniformCut(), EntropyJumpCut(), EntropyThresholdCut(0.6, window=1)], ids=repr)
@pytest.mark.parametrize("window", [0, 1, 2])
def test_moves_keep_the_law_and_the_code_follows_it(model, space, cut, window):
    matrix = mixed(space, cut, window) if window else transition_matrix(space, cut.probabilities)
    assert_reversible(space, matrix)
    sampler = MetropolisHastings(TARGET, block=HORIZON, moves=2, cut=cut, window=window, window_share=0.6)
    assert g_test(frequencies(model, sampler, CHAINS), space.answers, after(space, matrix, 2)) > 1e-3


def test_multiple_tries_keep_the_law_and_the_code_follows_it(model, space):
    matrix = multiple_try_matrix(space, UniformCut().probabilities, lambda h: 2)
    assert_reversible(space, matrix)
    sampler = MultipleTry(TARGET, block=HORIZON, moves=2, tries=2)
    assert g_test(frequencies(model, sampler, CHAINS), space.answers, after(space, matrix, 2)) > 1e-3


@pytest.mark.parametrize(
    "sampler",
    [
        MetropolisHastings(TARGET, block=1, moves=12),
        EntropyCut(TARGET, block=2, moves=12),
        EntropyGuided(TARGET, block=2, moves=12, tries=2),
        ParallelTempering(TARGET, block=2, moves=8, ladder=(1.0, ALPHA)),
        ParticleMH(TARGET, moves=10, particles=3, block=1, ramp=0),
        ConditionalSMC(TARGET, moves=14, particles=3, block=1),
        PowerSMC(TARGET, particles=32, block=1, ramp=2),
    ],
    ids=lambda sampler: sampler.method,
)
def test_every_exact_sampler_reaches_the_law(model, space, sampler):
    assert g_test(frequencies(model, sampler, 400), space.answers, space.pi) > 1e-3


@pytest.mark.parametrize("cls", [PowerSMC, AuxiliaryParticles])
def test_evidence_counts_answers_that_stop(model, space, cls):
    sampler = cls(TARGET, particles=4, threshold=0.8, block=1)
    z = np.exp([run.diagnostics["log_z"] for run in outcomes(model, sampler, 600)])
    error = z.std(ddof=1) / math.sqrt(len(z))
    assert abs(z.mean() - math.exp(space.log_norm)) < 4 * error
    unstopped = sum(math.exp(ALPHA * logp) for logp in model.records((0,), HORIZON).values())
    assert abs(unstopped - math.exp(space.log_norm)) > 20 * error, "stopping makes no difference here"


def test_draws_token_by_token_stop(model, space):
    law = np.exp([space.log_q(x, 0) for x in space.answers])
    assert g_test(frequencies(model, LowTemperature(TARGET), 800), space.answers, law) > 1e-3
    for sampler in (Plain(TARGET), BestOfN(TARGET, n=2)):
        assert set(frequencies(model, sampler, 200)) <= set(space.answers)


def test_a_kept_tail_that_is_not_looked_at_again_is_caught(monkeypatch):
    """A window move that trusts the tail's old end leaves the support, or calls what goes on an answer."""
    monkeypatch.setattr("fastpower.chains.chain.Chain.ending", lambda chain, tokens, begin, horizon, ended: ended)
    model, target = spelling(scale=0.3), PowerTarget(1.0, HORIZON, stop=STOP)
    sampler, space = MetropolisHastings(target, block=HORIZON, moves=4, window=1), Stopped(model, 1.0, HORIZON)
    assert not set(frequencies(model, sampler, 300)) <= set(space.answers)


@pytest.mark.parametrize("options", [{"skip": False}, {"early_rejection": False}, {"prefetch": 4}])
def test_accelerations_change_no_bit_of_chains_that_stop(options):
    model = spelling(eos_bias=-2.0)
    target = PowerTarget(3.0, 9, stop=("abab", "bbb"))
    settings: dict[str, Any] = {"block": 4, "moves": 5, "window": 2, "window_share": 0.5}
    plain = outcomes(model, MetropolisHastings(target, **settings), 12)
    for more in ({"max_rows": 5}, {"guess": 3}, {"share_lanes": False}, {"resume": False}):
        other = outcomes(model, MetropolisHastings(target, **settings, **options), 12, **more)
        assert [(a.record.tokens, a.record.ended, a.record.logp.tobytes(), a.trace) for a in plain] == [
            (b.record.tokens, b.record.ended, b.record.logp.tobytes(), b.trace) for b in other
        ]


def test_a_kept_tail_that_is_looked_at_again_leaves_no_support():
    model, target = spelling(scale=0.3), PowerTarget(1.0, HORIZON, stop=STOP)
    sampler, space = MetropolisHastings(target, block=HORIZON, moves=4, window=1), Stopped(model, 1.0, HORIZON)
    assert g_test(frequencies(model, sampler, 900), space.answers, space.pi) > 1e-3


def test_an_answer_that_stops_with_its_last_token_has_ended(model):
    for run in outcomes(model, MetropolisHastings(TARGET, block=2, moves=6, window=1), 200):
        x = run.record
        assert x.ended == (x.tokens[-1] == 0 or any(s in model.decode(x.tokens) for s in STOP))


# -- text and tokens ---------------------------------------------------------------------------------------------------


def bytewise(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def ends(stop: Sequence[str], tokens: Sequence[int], decode: Any = bytewise) -> Answer:
    """The tokens up to where an answer ends."""
    stopping = Stopping(stop, decode)
    for t in range(1, len(tokens) + 1):
        if stopping(tokens[:t]):
            return tuple(tokens[:t])
    return tuple(tokens)


@pytest.mark.parametrize("stop", ["é", "日本", "\n\n", "b", "naïve", "🙂", "x é"])
def test_strings_spelt_by_bytes_are_found_at_their_last_byte(stop):
    text = "xb naïve\n\n日本é x é🙂 end"
    tokens = list(text.encode())
    expected = len(text[: text.find(stop) + len(stop)].encode())
    assert len(ends([stop], tokens)) == expected


def test_tokens_that_cannot_complete_a_string_are_not_decoded_with_all_before_them():
    lengths: list[int] = []

    def decode(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return bytewise(tokens)

    ends(["\n\n"], list(b"a line without any\nb" * 20), decode)
    assert sum(length > 1 for length in lengths) == 20  # once a line


def test_text_ends_before_the_first_string():
    assert before_stop("one two three", ["three", "two", "two t"]) == ("one ", "two t")
    assert before_stop("one", []) == ("one", None)


@pytest.mark.parametrize("stop", ["", ["a", ""], [b"a"], 3, [None]])
def test_what_is_no_stop_string_is_named(stop):
    with pytest.raises(ValueError, match="stop must be"):
        PowerTarget(2.0, 9, stop=stop)


def test_a_target_says_only_what_is_set():
    assert repr(PowerTarget(2.0, 9)) == "PowerTarget(alpha=2.0, horizon=9, schedule=())"
    assert repr(PowerTarget(2.0, 9, stop="x")) == "PowerTarget(alpha=2.0, horizon=9, schedule=(), stop=('x',))"
