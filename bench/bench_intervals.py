"""How often 95 % intervals of evaluations cover the truth, by the number of problems.

python -m bench.bench_intervals [--draws 4000]

Accuracies of 0.05 to 0.95 with one answer a problem or four (problems of unequal difficulty, Beta(p, 1 − p)), and
differences of ten pairs of accuracies whose problems are equally hard for both methods, or hard independently. Printed:
the mean coverage over all of them, the lowest, and the mean width. *Percentile* is the bootstrap of the problems
alone, which was used before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fastpower.evaluate.statistics import difference_interval, estimate

SIZES = (5, 10, 20, 50, 100, 200)
ACCURACIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PAIRS = ((0.05, 0.05), (0.1, 0.05), (0.3, 0.1), (0.5, 0.5), (0.6, 0.4), (0.9, 0.5), (0.95, 0.05), (0.95, 0.9),
         (0.95, 0.95), (0.8, 0.75))  # fmt: skip
Values = NDArray[np.float64]
Interval = Callable[[Values], tuple[float, float]]


def plain(values: Values) -> tuple[float, float]:
    half = 2 * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def percentile(values: Values, seed: int = 0) -> tuple[float, float]:
    picks = np.random.default_rng(seed).integers(0, len(values), (400, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def accuracies(n: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[float, Values]]:
    for truth in ACCURACIES:
        yield truth, (rng.random((draws, n)) < truth).astype(np.float64)
        yield truth, rng.binomial(4, rng.beta(truth, 1 - truth, (draws, n))) / 4


def differences(n: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[float, Values]]:
    for first, second in PAIRS:
        for answers in (1, 4):
            for shared in (False, True):
                u = rng.random((draws, n, answers))
                v = u if shared else rng.random((draws, n, answers))
                gaps = (u < first).mean(axis=2) - (v < second).mean(axis=2)
                yield first - second, gaps


def coverage(interval: Interval, cases: Iterator[tuple[float, Values]]) -> str:
    covered, widths = [], []
    for truth, values in cases:
        bounds = np.array([interval(row) for row in values])
        covered.append(((bounds[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= bounds[:, 1])).mean())
        widths.append((bounds[:, 1] - bounds[:, 0]).mean())
    return f"{np.mean(covered):.3f} ({min(covered):.3f}), {np.mean(widths):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="data sets of each kind (default 4000)")
    draws = parser.parse_args().draws
    print("| problems | accuracy | mean ± 2 se | difference | mean ± 2 se | percentile |\n|---|---|---|---|---|---|")
    for n in SIZES:
        cells = [
            coverage(lambda row: estimate(row).interval, accuracies(n, draws, np.random.default_rng(n))),
            coverage(plain, accuracies(n, draws, np.random.default_rng(n))),
            coverage(difference_interval, differences(n, draws, np.random.default_rng(n))),
            coverage(plain, differences(n, draws, np.random.default_rng(n))),
            coverage(percentile, differences(n, max(draws // 10, 50), np.random.default_rng(n))),
        ]
        print(f"| {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
