"""Numbers with their uncertainty: accuracy, pass@k, majority vote, paired bootstrap, compute-matched best-of-N.

The unit of sampling is the *problem*: several answers to one problem are averaged first, and standard errors are over
problems. Records are dictionaries with at least ``problem``, ``correct``, ``answer``, ``logp`` and ``decoded_tokens``.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpower.results.traces import RunLine

FEW = 20  #: below so many problems, standard errors are too narrow, and intervals that cover are wide


class Estimate(NamedTuple):
    """A mean over problems."""

    mean: float
    se: float  #: standard error; NaN with fewer than two problems
    problems: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of a mean of values in [0, 1], such as an accuracy.

        It is over the problems and four more of values 0, 0, 1, 1 (Agresti & Coull 1998 for proportions): mean ± 2
        standard errors says ± 0 where all values are alike. docs/evaluation.md has its coverage.
        """
        if self.problems == 0:
            return 0.0, 1.0
        spread = 0.0 if self.problems == 1 else self.se**2 * self.problems * (self.problems - 1)
        low, high = _widened(self.mean, spread, self.problems, (0.0, 0.0, 1.0, 1.0))
        return max(0.0, low), min(1.0, high)

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.se) else f"{self.mean:.3f} ± {self.se:.3f}"


class Difference(NamedTuple):
    """A paired difference between two methods on the same problems."""

    mean: float
    low: float  #: lower end of the 95 % interval, see ``paired_bootstrap``
    high: float
    p_value: float  #: two-sided bootstrap p-value of "no difference"
    problems: int


def _widened(mean: float, spread: float, n: int, more: Sequence[float]) -> tuple[float, float]:
    """Mean ± 2 standard errors of n values and ``more``, from the n values' mean and sum of squared deviations."""
    extra = np.asarray(more, dtype=np.float64)
    m = n + len(extra)
    centre = (n * mean + extra.sum()) / m
    total = spread + n * (mean - centre) ** 2 + ((extra - centre) ** 2).sum()
    half = 2.0 * math.sqrt(total / (m - 1) / m)
    return float(centre - half), float(centre + half)


def by_problem(records: Iterable[RunLine]) -> dict[str, list[RunLine]]:
    """Records of each problem, problems in order of appearance."""
    groups: dict[str, list[RunLine]] = defaultdict(list)
    for record in records:
        groups[str(record["problem"])].append(record)
    return dict(groups)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error (n − 1 in the variance) of one value per problem."""
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), 0)
    array = np.asarray(values, dtype=np.float64)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"), n)


def mean_over_problems(records: Iterable[RunLine], key: str) -> Estimate:
    """Mean of ``record[key]`` within each problem, then over problems."""
    return estimate([float(np.mean([float(r[key]) for r in group])) for group in by_problem(records).values()])


def accuracy(records: Iterable[RunLine]) -> Estimate:
    """Fraction of correct answers: expected accuracy of one answer."""
    return mean_over_problems(records, "correct")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k answers drawn without replacement from ``samples`` is among the ``correct``.

    The unbiased estimator 1 − C(n−c, k)/C(n, k) of Chen et al. 2021 (2107.03374, equation 1), as a product.

    Examples:
        >>> pass_at_k(samples=4, correct=1, k=1), pass_at_k(samples=4, correct=1, k=2)
        (0.25, 0.5)
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@k needs 1 ≤ k ≤ samples and 0 ≤ correct ≤ samples; got {k=}, {samples=}, {correct=}")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def pass_at_k_of(records: Iterable[RunLine], k: int) -> Estimate:
    """pass@k over problems; every problem needs at least k answers."""
    groups = by_problem(records).values()
    return estimate([pass_at_k(len(group), sum(bool(r["correct"]) for r in group), k) for group in groups])


def majority_vote(records: Iterable[RunLine]) -> Estimate:
    """Accuracy of the most frequent answer of each problem (self-consistency).

    *Not* a property of one answer: label it. Answers are grouped by their normalised text; ties go to the answer that
    came first by chain. A problem without any answer counts as wrong.
    """
    from fastpower.evaluate.grading.equivalence import normalise

    values = []
    for group in by_problem(records).values():
        answers = [(normalise(str(r["answer"])), bool(r["correct"])) for r in group if r.get("answer") is not None]
        counts = Counter(answer for answer, _ in answers)  # most_common keeps first-seen order among equals
        winner = counts.most_common(1)[0][0] if counts else None
        values.append(float(any(correct for answer, correct in answers if answer == winner)))
    return estimate(values)


def paired_bootstrap(
    first: Iterable[RunLine], second: Iterable[RunLine], *, key: str = "correct", resamples: int = 10_000, seed: int = 0
) -> Difference:
    """mean(first) − mean(second) over the problems that both have, with what so many problems can say about it.

    Two more problems, one that only the first solves and one that only the second solves, are added before the interval
    (their mean ± 2 standard errors; Bonett & Price 2012 for 0/1) and before resampling: few problems that all agree are
    no proof that the others do. A percentile interval of the problems alone covers 0.78 of the time at ten of them.
    Where values are not in [0, 1], such as log p, nothing is added, and the interval is Student's.

    Args:
        first: Records of one method.
        second: Those of the other.
        key: What is compared.
        resamples: Of the problems, for the p-value.
        seed: Of the resamples.

    Raises:
        ValueError: No problem is in both.
    """
    a, b = (
        {name: float(np.mean([float(r[key]) for r in group])) for name, group in by_problem(records).items()}
        for records in (first, second)
    )
    shared = [name for name in a if name in b]
    if not shared:
        raise ValueError("paired_bootstrap: the two methods share no problem")
    if len(shared) < FEW:
        warnings.warn(
            f"a bootstrap over {len(shared)} problems: below {FEW} its intervals are wide and its p-values rough; use "
            "more problems",
            stacklevel=2,
        )
    gaps = np.array([a[name] - b[name] for name in shared])
    unit = all(0.0 <= value <= 1.0 for name in shared for value in (a[name], b[name]))
    low, high = difference_interval(gaps) if unit else _student_interval(gaps)
    padded = np.append(gaps, [1.0, -1.0]) if unit else gaps
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 256):  # 256 resamples at a time: memory stays small for thousands of problems
        stop = min(start + 256, resamples)
        means[start:stop] = padded[generator.integers(0, len(padded), size=(stop - start, len(padded)))].mean(axis=1)
    # the observed data are one more resample: a p-value of 0 cannot come from finitely many
    tail = (min(int((means <= 0).sum()), int((means >= 0).sum())) + 1) / (resamples + 1)
    return Difference(float(gaps.mean()), low, high, min(1.0, 2.0 * tail), len(shared))


def difference_interval(gaps: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences in [−1, 1], one a problem; see ``paired_bootstrap``."""
    mean = float(gaps.mean())
    low, high = _widened(mean, float(((gaps - mean) ** 2).sum()), len(gaps), (-1.0, 1.0))
    return max(-1.0, low), min(1.0, high)


def _student_interval(gaps: NDArray[np.float64]) -> tuple[float, float]:
    n, mean = len(gaps), float(gaps.mean())
    if n == 1:
        return -math.inf, math.inf
    half = _student_quantile(n - 1) * float(gaps.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def _student_quantile(freedom: int) -> float:
    """0.975 quantile of Student's t, to three digits (Abramowitz & Stegun 26.7.5)."""
    if freedom <= 2:
        return (12.706, 4.303)[freedom - 1]
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))


def compute_matched_best_of_n(samples: Iterable[RunLine], budgets: Mapping[str, float]) -> list[RunLine]:
    """Best-of-N by log p with N set by compute.

    Per problem, plain samples are taken in order of chain until their decoded tokens reach its budget (at least one is
    taken), and the one of highest ``logp`` answers.

    Args:
        samples: Records of plain answers.
        budgets: By problem, the decoded tokens (rejected ones included) of the method to match.

    Returns:
        The chosen records, with ``decoded_tokens`` of all the samples taken, ``best_of`` = N and ``budget_met``, which
        is
        False where the samples ran out.
    """
    chosen: list[RunLine] = []
    for name, group in by_problem(samples).items():
        if name not in budgets:
            continue
        spent, taken = 0, list[RunLine]()
        for record in sorted(group, key=lambda r: int(r["chain"])):
            if taken and spent >= budgets[name]:
                break
            taken.append(record)
            spent += int(record["decoded_tokens"])
        best = max(taken, key=lambda r: float(r["logp"]))
        extra = {"decoded_tokens": spent, "best_of": len(taken), "budget_met": spent >= budgets[name]}
        chosen.append({**best, **extra})
    return chosen
