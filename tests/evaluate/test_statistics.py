"""Estimates against closed forms and brute force."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fastpower.evaluate.statistics import (
    accuracy,
    compute_matched_best_of_n,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
    pass_at_k_of,
)


def _records(correct: dict[str, list[int]], **extra: Any) -> list[dict[str, Any]]:
    return [
        {"problem": name, "chain": i, "correct": bool(c), "answer": str(c), **extra}
        for name, values in correct.items()
        for i, c in enumerate(values)
    ]


def test_accuracy_averages_within_problems_first() -> None:
    result = accuracy(_records({"a": [1, 1, 1, 1, 0], "b": [0], "c": [1, 0]}))
    means = np.array([0.8, 0.0, 0.5])
    assert result.mean == pytest.approx(means.mean())
    assert result.se == pytest.approx(means.std(ddof=1) / np.sqrt(3))
    assert result.problems == 3


@pytest.mark.parametrize("n, c, k", [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 3, 5), (7, 1, 7)])
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_answer(n: int, c: int, k: int) -> None:
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([min(s) < c for s in subsets]))


def test_pass_at_1_is_accuracy_and_too_large_k_is_refused() -> None:
    records = _records({"a": [1, 0, 0], "b": [1, 1, 0]})
    assert pass_at_k_of(records, 1).mean == pytest.approx(accuracy(records).mean)
    with pytest.raises(ValueError, match="k=4"):
        pass_at_k_of(records, 4)


def test_majority_vote_counts_answers_not_records() -> None:
    answers = {"a": ["7", "8", " 7 "], "b": ["1", "2", "2"], "c": [None, None, "5"], "d": [None]}
    right = {"a": "7", "b": "1", "c": "5", "d": "0"}
    records = [
        {"problem": p, "answer": a, "correct": a is not None and a.strip() == right[p]}
        for p, values in answers.items()
        for a in values
    ]
    assert majority_vote(records).mean == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_paired_bootstrap_covers_the_truth_at_its_level_and_pairs() -> None:
    generator = np.random.default_rng(0)
    covered, trials, n, gap = 0, 200, 60, 0.2
    for trial in range(trials):
        difficulty = generator.random(n)
        second = generator.random(n) < difficulty * (1 - gap)
        first = second | (generator.random(n) < gap)
        truth = gap * (1 - 0.5 * (1 - gap))
        a, b = ([{"problem": str(i), "correct": bool(x)} for i, x in enumerate(v)] for v in (first, second))
        result = paired_bootstrap(a, b, resamples=300, seed=trial)
        covered += result.low <= truth <= result.high
    assert 0.88 <= covered / trials <= 0.99  # 95 % minus the small-sample loss of percentile intervals


def test_paired_bootstrap_of_a_method_with_itself_is_zero_and_of_disjoint_problems_refused() -> None:
    records = _records({"a": [1, 0], "b": [1, 1]})
    result = paired_bootstrap(records, records)
    assert (result.mean, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="share no problem"):
        paired_bootstrap(records, _records({"z": [1]}))


def test_compute_matched_best_of_n_spends_the_budget_and_takes_the_most_likely() -> None:
    logps = [-5.0, -2.0, -1.0, -0.5]
    samples = [
        {"problem": "a", "chain": i, "decoded_tokens": 10, "logp": logps[i], "correct": i == 1} for i in (2, 0, 3, 1)
    ]
    chosen = compute_matched_best_of_n(samples, {"a": 15.0})[0]
    assert (chosen["chain"], chosen["best_of"], chosen["decoded_tokens"], chosen["budget_met"]) == (1, 2, 20, True)
    short = compute_matched_best_of_n(samples, {"a": 1000.0})[0]
    assert (short["chain"], short["best_of"], short["budget_met"]) == (3, 4, False)
    least = compute_matched_best_of_n(samples, {"a": 0.0})[0]
    assert (least["best_of"], least["chain"]) == (1, 0)
