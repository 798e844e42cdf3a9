"""Answer power: its law on a given pool, its limit by enumeration, island weights, and what texts answer."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from fastpower import generate, load, make_sampler
from fastpower.evaluate.grading.answer_of import choice, code_output, mathematics
from fastpower.results.pools import answer_power, island_weights, reweight, vote
from tests.exact.enumeration import PROMPT, Enumeration, g_test, toy_models

POOL = ["a", "b", "a", None, "c", "b", "a"]
WEIGHTS = [0.1, 0.5, 0.05, 0.9, 0.2, 0.1, 0.15]
MASS = {"a": 0.3, "b": 0.6, "c": 0.2}


def same(answer):
    return answer


def powered(gamma: float) -> np.ndarray:
    law = np.array([m**gamma for m in MASS.values()])
    return law / law.sum()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_answers_are_drawn_by_the_power_of_their_mass_and_not_of_each_weight(gamma):
    drawn = [answer_power(POOL, same, WEIGHTS, gamma=gamma, seed=seed) for seed in range(1500)]
    counts = Counter(draw.answer for draw in drawn)
    assert g_test(counts, list(MASS), powered(gamma)) > 1e-3
    assert all(POOL[draw.index] == draw.answer for draw in drawn)
    if gamma == 2.0:  # the mistake: every weight to the power, added up afterwards
        split = {a: sum(w**gamma for x, w in zip(POOL, WEIGHTS, strict=True) if x == a) for a in MASS}
        assert g_test(counts, list(MASS), np.array(list(split.values())) / sum(split.values())) < 1e-6
    inside = Counter(draw.index for draw in drawn if draw.answer == "a")
    assert g_test(inside, [0, 2, 6], np.array([0.1, 0.05, 0.15]) / 0.3) > 1e-3


def test_a_seed_decides_and_a_large_power_is_the_vote():
    assert answer_power(POOL, same, WEIGHTS, seed=5) == answer_power(POOL, same, WEIGHTS, seed=5)
    for seed in range(20):
        assert answer_power(POOL, same, WEIGHTS, gamma=500.0, seed=seed).answer == vote(POOL, same, WEIGHTS).answer


def test_in_a_large_pool_the_law_is_that_of_the_targets_answers_to_the_power():
    """Reweighted plain answers, told apart by their first token only."""
    alpha, law = 2.0, Enumeration(toy_models()["eos"], 2.0, 4)
    exact: Counter = Counter()
    for x, probability in zip(law.answers, law.pi, strict=True):
        exact[x[0]] += probability
    sampler = make_sampler("plain", alpha=alpha, max_new_tokens=4)
    pool = list(generate(load(toy_models()["eos"]), [list(PROMPT)], sampler, seed=0, chains=1500))
    shares = answer_power(pool, lambda answer: answer.token_ids[0], reweight(pool, alpha).weights).shares
    for token, probability in exact.items():
        assert abs(shares[token] - probability) < 0.06


def test_populations_weigh_what_their_z_says():
    runs = [SimpleNamespace(method="smc", diagnostics={"log_z": z}) for z in (-2.0, None, -2.0 + math.log(3))]
    np.testing.assert_allclose(island_weights(runs), [0.25, 0.0, 0.75])


def test_what_is_no_pool_is_refused_and_a_pool_without_answers_says_so():
    with pytest.raises(ValueError, match="empty pool"):
        answer_power([], same)
    with pytest.raises(ValueError, match="gamma must be a finite number > 0, got 0"):
        answer_power(POOL, same, gamma=0)
    with pytest.raises(ValueError, match="7 numbers"):
        answer_power(POOL, same, [1.0])
    nobody = answer_power([None, None], same)
    assert nobody.answer is None and nobody.index is None and nobody.probability == 0.0
    with pytest.raises(ValueError, match="empty pool"):
        island_weights([])
    with pytest.raises(ValueError, match=r"answer 0 of 'mh' has no log_z"):
        island_weights([SimpleNamespace(method="mh", diagnostics={})])
    with pytest.raises(ValueError, match="no population"):
        island_weights([SimpleNamespace(method="marginal", diagnostics={"log_z": None})])


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{12}", "12"),
        (r"thus \boxed{12.0}", "12"),
        ("#### 12", "12"),
        ("The answer is 1,200.", "1200"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        (r"\boxed{x+1}", "x+1"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        ("no idea", None),
    ],
)
def test_mathematics_by_value(text, answer):
    assert mathematics(text) == answer
    assert mathematics({"text": text}) == answer and mathematics(SimpleNamespace(text=text)) == answer


def test_choices_are_letters_of_the_task():
    assert [choice()(text) for text in (r"\boxed{C}", "The answer is (B)", r"\boxed{12}", "well")] == ["C", "B"] + [
        None
    ] * 2
    with pytest.raises(ValueError, match="letters"):
        choice("")


def test_programs_that_give_the_same_are_one_answer():
    head = 'def twice(x):\n    """Two times x."""\n'
    answer = code_output(head, "twice", ["twice(3)", "twice('ab')", "twice(None)"])
    replies = ["    return 2 * x\n", "    return x + x\n", "    return x\n", "    while True: pass\n"]
    found = [answer(text) for text in replies[:3]]
    assert found[0] == found[1] != found[2] and None not in found
    assert code_output(head, "twice", ["twice(3)"], timeout=0.5)(replies[3]) is None
    with pytest.raises(ValueError, match="calls"):
        code_output(head, "twice", [])
