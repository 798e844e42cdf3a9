"""Advice from pools: predictions against enumeration, no figure without effective answers, the command as a whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastpower import generate, load, make_sampler
from fastpower.cli import main
from fastpower.evaluate.advice import Prediction, predict, verdict
from tests.exact.enumeration import PROMPT, Enumeration, toy_models

HORIZON = 4


def graded(method: str, chains: int, problem: str = "a"):
    """Right is an answer whose first token is 0."""
    sampler = make_sampler(method, alpha=2.0, max_new_tokens=HORIZON)
    results = generate(load(toy_models()["eos"]), [list(PROMPT)], sampler, seed=1, chains=chains, prompt_ids=[problem])
    return [r.to_dict() | {"problem": problem, "correct": r.token_ids[0] == 0} for r in results]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_the_predicted_accuracy_length_and_cut_are_those_of_the_law(alpha):
    records = [r for p in "abcd" for m in ("plain", "low_temperature") for r in graded(m, 600, p)]
    law = Enumeration(toy_models()["eos"], alpha, HORIZON)
    seen = predict(records, alpha)
    assert seen.accuracy == pytest.approx(law.pi @ [float(x[0] == 0) for x in law.answers], abs=0.05)
    assert seen.length == pytest.approx(law.pi @ [len(x) for x in law.answers], abs=0.2)
    assert seen.cut == pytest.approx(law.pi @ [float(x[-1] != 2) for x in law.answers], abs=0.05)
    assert seen.low <= seen.accuracy <= seen.high and seen.readable == 4


def test_no_accuracy_is_stated_without_effective_answers():
    records = [r for p in "abcd" for m in ("plain", "low_temperature") for r in graded(m, 1, p)]
    assert predict(records, 4.0).accuracy is None


def test_no_answers_are_an_error():
    with pytest.raises(ValueError, match="draw a pool"):
        predict([], 2.0)


@pytest.mark.parametrize(
    ("accuracy", "gain_low", "says"),
    [
        (0.2, -0.1, "Do not sharpen"),
        (0.45, -0.05, "Perhaps"),
        (0.6, 0.1, "Sharpen with alpha = 4"),
        (None, 0, "cannot tell"),
    ],
)
def test_the_verdict_follows_the_figures(accuracy, gain_low, says):
    row = Prediction(4.0, 5.0, 9, 10, accuracy, 0.0, 1.0, 0.0, gain_low, 0.3, 9.0, 0.0, -1.0)
    assert says in verdict([row], plain=0.3, cooled=0.4)


def test_the_command_draws_predicts_and_measures(monkeypatch, capsys, tmp_path):
    from tests.evaluate import toys

    monkeypatch.setattr("fastpower.evaluate.tasks.load_task", lambda *a, **k: toys.toy_task(5))
    monkeypatch.setattr("fastpower.commands.advise.load_from", lambda args: toys.toy_model())
    command = [
        "advise",
        "--task",
        "math_mini",
        "--n",
        "5",
        "--pool",
        "8",
        "--quiet",
        "--json",
        "--out",
        str(tmp_path / "a"),
    ]
    assert main([*command, "--alpha", "2", "--costs", "mh"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [p["alpha"] for p in first["predictions"]] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert first["tokens_per_answer"]["mh"] > 0 and np.isfinite(first["plain"]["mean"])
    assert main([*command, "--alpha", "2", "--costs", "mh"]) == 0  # from the folder: nothing is drawn again
    assert json.loads(capsys.readouterr().out) == first
    assert main(["advise", "--task", "math_mini", "--alphas", "1,x"]) == 2
    assert "--alphas" in capsys.readouterr().err
