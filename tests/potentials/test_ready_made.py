"""The ready-made potentials say what they promise, and what is wrong with one ends one answer alone."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastpower import PowerTarget, generate, make_sampler
from fastpower.errors import InvalidPotential
from fastpower.evaluate.sandbox import SandboxUnavailable, require_sandbox
from fastpower.potential import Answer, log_values
from fastpower.potentials import (
    Closed,
    Holds,
    LengthWindow,
    Matches,
    OfText,
    OfTokens,
    Potential,
    Product,
    Reward,
    UnitTests,
)
from fastpower.samplers import METHODS
from fastpower.samplers.islands import combine, split
from tests.evaluate.toys import toy_model

OUT = -math.inf


def answer(text: str = "", tokens: Sequence[int] = (1, 2), ended: bool = True) -> Answer:
    return Answer(list(tokens), ended, lambda: text)


def value(potential: Any, given: Answer) -> Any:
    [found] = log_values(potential, [given])
    return found


@pytest.mark.parametrize(
    "potential, given, expected",
    [
        (OfTokens(lambda tokens: -len(tokens)), answer(tokens=[3, 4, 5]), -3.0),
        (OfText(lambda text: -0.5 * len(text)), answer("abcd"), -2.0),
        (Matches(r"\d+"), answer("a 12"), 0.0),
        (Matches(r"\A\d+\Z"), answer("a 12"), OUT),
        (Matches(r"(?i)YES", log_weight=3.0), answer("no"), -3.0),
        (Holds(str.isupper), answer("AB"), 0.0),
        (Holds(str.isupper), answer("Ab"), OUT),
        (LengthWindow(2, 3), answer(tokens=[1, 2, 3]), 0.0),
        (LengthWindow(2, 3), answer(tokens=[1]), OUT),
        (LengthWindow(most=3, log_weight=1.5), answer(tokens=[1] * 4), -1.5),
        (Closed(), answer(ended=True), 0.0),
        (Closed(log_weight=2.0), answer(ended=False), -2.0),
        (Reward(lambda texts: [len(text) for text in texts], temperature=2.0), answer("abcd"), 2.0),
        (Product(Closed(), OfText(len)), answer("abc"), 3.0),
        (Product(Closed(), OfText(lambda text: 1 / 0)), answer(ended=False), OUT),  # never asked
        (OfTokens(lambda tokens: np.float32(-1.5)), answer(), -1.5),
        (OfTokens(lambda tokens: -math.inf), answer(), OUT),
    ],
)
def test_values(potential, given, expected):
    assert value(potential, given) == expected


@pytest.mark.parametrize(
    "says, error",
    [
        (math.nan, "gave nan for an answer of 2 tokens; log φ must be a finite number"),
        (math.inf, "gave inf.*or −inf for an answer that is ruled out"),
        (None, "gave None.*log φ must be a number"),
        ("good", "log φ must be a number"),
        (True, "gave True.*0 where it holds and −inf where not: potentials.Holds"),
        (np.bool_(False), "potentials.Holds"),
        (0.5, "above its upper = 0.25"),
    ],
)
def test_what_is_no_log_potential_is_named(says, error):
    with pytest.raises(InvalidPotential, match=error):
        raise value(OfTokens(lambda tokens: says, upper=0.25), answer())


def test_one_answer_of_a_batch_fails_alone():
    def score(texts):
        if "bad" in texts:
            raise RuntimeError("out of order")
        return [float(len(text)) for text in texts]

    found = log_values(Reward(score), [answer("a"), answer("bad"), answer("abc")])
    assert found[0] == 1.0 and found[2] == 3.0 and "out of order" in str(found[1])
    short = log_values(Reward(lambda texts: [1.0]), [answer("a"), answer("b")])
    assert short == [1.0, 1.0]  # each alone
    [none] = log_values(Reward(lambda texts: []), [answer("a")])
    assert "gave 0 values for 1 texts" in str(none)


def test_a_reward_is_asked_in_batches():
    sizes = []

    def score(texts):
        sizes.append(len(texts))
        return [0.0] * len(texts)

    assert log_values(Reward(score, batch=3), [answer(str(i)) for i in range(7)]) == [0.0] * 7
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Matches("("), "is no regular expression"),
        (lambda: Matches("a", log_weight=0.0), "log_weight must be nats > 0"),
        (lambda: Holds(bool, log_weight=math.inf), "log_weight must be nats > 0"),
        (lambda: LengthWindow(4, 3), "least = 4, most = 3"),
        (lambda: LengthWindow(0), "least = 0"),
        (lambda: Reward(len, temperature=0.0), "temperature must be"),
        (lambda: Reward(len, batch=0), "batch must be at least 1"),
        (lambda: UnitTests(()), "tests must hold at least one"),
        (lambda: Product(), "at least one potential"),
        (lambda: PowerTarget(potential=3), "potential must be a function"),
        (lambda: PowerTarget(potential=Matches), "potential must be a function"),
    ],
)
def test_bad_settings_are_named(make, error):
    with pytest.raises(ValueError, match=error):
        make()


def test_settings_stand_in_the_target_and_travel():
    target = PowerTarget(2.0, 9, potential=Product(Matches("a"), LengthWindow(2, 8)))
    assert "Matches(pattern='a'" in repr(target) and "potential" not in repr(PowerTarget(2.0, 9))
    assert pickle.loads(pickle.dumps(target)) == target


# -- unit tests --------------------------------------------------------------------------------------------------------


def test_unit_tests_run_in_the_sandbox():
    try:
        require_sandbox()
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    checks = ("assert double(2) == 4", "assert double(5) == 10")
    right, half, wrong = (f"def double(x): return {body}" for body in ("x * 2", "x + 2", "x"))
    given = [answer(right), answer(f"So:\n```python\n{half}\n```\n"), answer(wrong), answer("def (")]
    assert log_values(UnitTests(checks, timeout=20.0), given) == [0.0, OUT, OUT, OUT]
    assert log_values(UnitTests(checks, log_weight=2.0, timeout=20.0), given) == [0.0, -2.0, -4.0, -4.0]


# -- by the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_takes_a_potential_or_refuses_it(method):
    sampler = make_sampler(method, alpha=2.0, max_new_tokens=8, potential=LengthWindow(most=6, log_weight=1.0))
    if not getattr(sampler, "takes_potential", False):
        with pytest.raises(ValueError, match=r"does not sample p.alpha with a potential: take one of mh"):
            generate(toy_model(), ["1 2"], sampler)
        return
    results = generate(toy_model(), ["1 2"], sampler, seed=3, chains=3)
    assert all(r.exact and r.diagnostics["in_support"] for r in results)
    assert all(r.diagnostics["log_potential"] == (0.0 if len(r.token_ids) <= 6 else -1.0) for r in results)


class Faulty(Potential):
    """Fails for some answers."""

    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        return [self.fault() if sum(i * t for i, t in enumerate(a.tokens, 1)) % 11 == 3 else 0.0 for a in answers]


@pytest.mark.parametrize("method", ["mh", "mtm", "tempering", "smc", "csmc"])
@pytest.mark.parametrize("fault", [lambda: math.nan, lambda: math.inf, lambda: 1 / 0])
def test_an_answer_whose_potential_fails_ends_alone(method, fault):
    settings = {"particles": 4, "block": 2} if "smc" in method else {"moves": 2, "block": 4}
    sampler = make_sampler(method, alpha=2.0, max_new_tokens=6, potential=Faulty(fault), **settings)
    with pytest.raises(InvalidPotential) as failure:
        generate(toy_model(), ["1 2", "3", "4"], sampler, seed=1, chains=6)
    left = failure.value.results
    alone = make_sampler(method, alpha=2.0, max_new_tokens=6, **settings)
    same = {r.id: r.token_ids for r in generate(toy_model(), ["1 2", "3", "4"], alone, seed=1, chains=6)}
    assert 0 < len(left) < 18 and all(same[r.id] == r.token_ids for r in left)


@pytest.mark.parametrize("method", ["mh", "mtm", "egps", "tempering", "smc", "pimh", "csmc"])
def test_a_potential_that_is_never_finite_is_a_labelled_result(method):
    settings = {"particles": 4, "block": 2} if method in ("smc", "pimh", "csmc") else {"moves": 2, "block": 4}
    sampler = make_sampler(method, alpha=2.0, max_new_tokens=6, potential=lambda tokens: -math.inf, **settings)
    with pytest.warns(UserWarning, match="3 of 3 answers have a potential of 0"):
        results = generate(toy_model(), ["1 2"], sampler, seed=1, chains=3)
    for result in results:
        assert not result.exact and not result.diagnostics["in_support"]
        assert result.diagnostics["log_potential"] is None and result.diagnostics.get("log_z") is None
        assert "Infinity" not in json.dumps(result.to_dict())


def test_a_text_potential_needs_a_text():
    class Wordless:
        tokenizer = None

        def __getattr__(self, name: str) -> Any:
            return getattr(toy_model().decoder, name)

    from dataclasses import replace

    model = replace(toy_model(), decoder=Wordless())
    with pytest.raises(ValueError, match="reads texts, and toy was loaded without a tokenizer"):
        generate(model, [[1]], make_sampler("mh", max_new_tokens=4, potential=Matches("a")))


def test_text_is_what_a_result_shows():
    seen = []

    def look(text: str) -> float:
        seen.append(text)
        return 0.0

    sampler = make_sampler("mh", alpha=2.0, max_new_tokens=8, moves=2, potential=OfText(look), stop=["4", "3 1"])
    results = generate(toy_model(), ["1 2"], sampler, seed=3, chains=4)
    assert {r.text for r in results} <= set(seen) and not any("4" in text for text in seen)


@pytest.mark.parametrize("potential", [LengthWindow(2, 5), lambda tokens: -math.inf, Closed()])
def test_islands_apart_choose_as_the_sampler_does(potential):
    settings = {"alpha": 3.0, "max_new_tokens": 6, "particles": 2, "block": 2, "ramp": 0, "islands": 3}
    sampler = make_sampler("smc", potential=potential, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(4):
            [whole] = generate(toy_model(), ["1 2"], sampler, seed=seed)
            parts = [generate(toy_model(), ["1 2"], part, seed=seed)[0].to_dict() for part in split(sampler)]
            joined = combine(parts)
            for name in ("token_ids", "text", "logp", "exact"):
                assert joined[name] == getattr(whole, name)
            for name in ("log_z", "island", "island_log_z", "in_support"):
                assert joined["diagnostics"][name] == whole.diagnostics[name]
