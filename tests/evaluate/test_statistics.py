"""Estimates against closed forms and brute force."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.stats

from fastpower.evaluate.statistics import (
    accuracy,
    compute_matched_best_of_n,
    difference_interval,
    estimate,
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
    assert covered / trials >= 0.93


def test_paired_bootstrap_of_a_method_with_itself_is_zero_and_of_disjoint_problems_refused() -> None:
    records = _records({"a": [1, 0], "b": [1, 1]})
    result = paired_bootstrap(records, records)
    assert (result.mean, result.p_value) == (0.0, 1.0)
    assert result.low == -result.high < -0.5  # two problems that agree say little of the others
    with pytest.raises(ValueError, match="share no problem"):
        paired_bootstrap(records, _records({"z": [1]}))


@pytest.mark.parametrize("n", [5, 10, 40])
@pytest.mark.parametrize("chains", [1, 4])
def test_intervals_of_accuracies_cover_at_every_accuracy(n: int, chains: int) -> None:
    """Problems of unequal difficulty; the interval of mean ± 2 standard errors covers 0.2 to 0.8 at the ends."""
    generator = np.random.default_rng(n)
    for truth in (0.05, 0.3, 0.5, 0.9, 0.95):
        hard = generator.beta(truth, 1 - truth, (1500, n)) if chains > 1 else np.full((1500, n), truth)
        values = generator.binomial(chains, hard) / chains
        bounds = np.array([estimate(row).interval for row in values])
        assert ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() >= 0.925, truth  # 0.93, with room for chance
        assert (bounds[:, 0] >= 0).all() and (bounds[:, 1] <= 1).all() and (bounds[:, 0] < bounds[:, 1]).all()


@pytest.mark.parametrize("n", [5, 10, 40])
def test_intervals_of_paired_differences_cover_at_every_pair_of_accuracies(n: int) -> None:
    generator = np.random.default_rng(n)
    for first, second in [(0.05, 0.05), (0.3, 0.1), (0.5, 0.5), (0.9, 0.5), (0.95, 0.9)]:
        for shared in (False, True):  # whether what is hard for one is hard for the other
            u = generator.random((1500, n))
            v = u if shared else generator.random((1500, n))
            gaps = (u < first).astype(np.float64) - (v < second)
            bounds = np.array([difference_interval(row) for row in gaps])
            covered = ((bounds[:, 0] <= first - second) & (first - second <= bounds[:, 1])).mean()
            assert covered >= 0.925, (first, second, shared)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 24, 200])
def test_intervals_of_values_without_bounds_are_students(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 50.0, n)
    records = [[{"problem": i, "logp": v} for i, v in enumerate(side)] for side in (values, np.zeros(n))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = paired_bootstrap(*records, key="logp", resamples=10)
    expected = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    assert (result.low, result.high) == pytest.approx(expected, rel=2e-2 if n == 4 else 3e-3)


def test_an_interval_of_one_or_no_problem_is_wide() -> None:
    assert estimate([]).interval == (0.0, 1.0)
    low, high = estimate([1.0]).interval
    assert low < 0.3 and high == 1.0


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
