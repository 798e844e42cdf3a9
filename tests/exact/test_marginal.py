"""Marginal sharpening: E[Ẑ 1{a}] = P(a)^K by enumeration, its mistake, and what is said where there is no answer."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from fastpower import make_sampler
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.samplers import MarginalSharpening
from fastpower.target import PowerTarget

from .runs import PROMPT, outcomes

TRACE, ANSWER, MARK, EOS = 3, 2, 1, 3  # tokens of a trace and of an answer; the token that is the delimiter
RUNS = 1500


def toy(seed: int = 11, **options) -> ToyDecoder:
    return ToyDecoder(random_logits(4, seed, eos=EOS, eos_bias=-1.0), 4, [EOS], **options)


def marginal(k: int, **settings) -> MarginalSharpening:
    settings = {"particles": 3, "block": 1, "threshold": 0.9} | settings
    return MarginalSharpening(PowerTarget(float(k), TRACE + ANSWER), str(MARK), answer_tokens=ANSWER, **settings)


@cache
def answers(seed: int = 11) -> dict[tuple[int, ...], float]:
    """P(a) by enumeration: every trace that reaches the delimiter, every answer behind it."""
    decoder, found = toy(seed), {}
    for z in {z[: z.index(MARK) + 1] for z in decoder.records(PROMPT, TRACE) if MARK in z}:
        logp = sum(float(decoder.log_probabilities((*PROMPT, *z[:t]))[z[t]]) for t in range(len(z)))
        for a, log_a in decoder.records((*PROMPT, *z), ANSWER).items():
            found[a] = found.get(a, 0.0) + math.exp(logp + log_a)
    return found


def z_scores(runs, k: int) -> np.ndarray:
    """(mean of Ẑ 1{a} − P(a)^K) / standard error of every answer seen often enough, and of Σ_a."""
    z = np.array([math.exp(run.diagnostics["log_z"]) if run.diagnostics["log_z"] is not None else 0.0 for run in runs])
    given = [tuple(run.diagnostics.get("answer", ())) for run in runs]
    rows = [(z * np.array([a == x for a in given]), p**k) for x, p in answers().items()]
    rows = [(values, exact) for values, exact in rows if (values > 0).sum() >= 20]
    rows.append((z, sum(p**k for p in answers().values())))
    return np.array([(v.mean() - exact) / (v.std(ddof=1) / math.sqrt(len(v))) for v, exact in rows])


@pytest.mark.parametrize("k", [2, 3])
def test_every_answer_has_the_weight_of_its_marginal_to_the_power_k(k):
    scores = z_scores(outcomes(toy(), marginal(k), RUNS), k)
    assert len(scores) > 4 and np.abs(scores).max() < 4.5, scores


def test_pooled_rows_renormalised_without_the_weight_are_caught(monkeypatch):
    monkeypatch.setattr(MarginalSharpening, "_gain", lambda self, token: 0.0 if token.token >= 0 else -math.inf)
    assert np.abs(z_scores(outcomes(toy(), marginal(2), 600), 2)).max() > 8.0


def test_one_trace_alone_is_the_model_itself():
    runs = outcomes(toy(), marginal(1, particles=1), RUNS)
    assert np.abs(z_scores(runs, 1)).max() < 4.5
    found = [run.diagnostics["log_z"] for run in runs if run.diagnostics["log_z"] is not None]
    assert len(found) > RUNS / 4 and np.abs(found).max() < 1e-6


def test_the_record_is_a_trace_and_the_answer_with_the_models_own_numbers():
    decoder = toy()
    answered = [run for run in outcomes(decoder, marginal(2), 40) if run.diagnostics["status"] == "answered"]
    assert len(answered) > 10
    for run in answered:
        x, answer = tuple(run.record.tokens), tuple(run.diagnostics["answer"])
        assert x[-len(answer) :] == answer and x.index(MARK) == len(x) - len(answer) - 1
        logp = [float(decoder.log_probabilities((*PROMPT, *x[:t]))[x[t]]) for t in range(len(x))]
        np.testing.assert_allclose(run.record.logp, logp, atol=1e-5)
        assert not run.exact and run.diagnostics["law"] == "consistent"


@pytest.mark.parametrize("options", [{"max_rows": 2}, {"resume": False}, {"share_lanes": False}], ids=str)
def test_answers_do_not_depend_on_rows_and_memory(options):
    wide = outcomes(toy(), marginal(2), 12)
    narrow = outcomes(toy(cache_tokens=60), marginal(2), 12, **options)
    assert [run.record.tokens for run in wide] == [run.record.tokens for run in narrow]
    assert [run.diagnostics["log_z"] for run in wide] == [run.diagnostics["log_z"] for run in narrow]


def test_a_delimiter_that_no_trace_reaches_is_a_labelled_result():
    sampler = MarginalSharpening(PowerTarget(2.0, 6), "9", particles=2, answer_tokens=2)
    [run] = outcomes(toy(), sampler, 1)
    assert run.diagnostics["status"] == "delimiter not reached" and run.diagnostics["log_z"] is None
    assert run.diagnostics["reached"] == 0 and len(run.record) > 0 and not run.exact


@pytest.mark.parametrize("alpha", [0.5, 2.5])
def test_alpha_must_be_a_whole_number_of_traces(alpha):
    with pytest.raises(ValueError, match=rf"alpha must be a whole number ≥ 1 for marginal .*, got {alpha}; use 2"):
        make_sampler("marginal", alpha=alpha, max_new_tokens=64)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"delimiter": ""}, "delimiter must be"),
        ({"answer_tokens": 8}, "leave a token"),
        ({"particles": 0}, "particles"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_sampler("marginal", alpha=2, max_new_tokens=8, **settings)
