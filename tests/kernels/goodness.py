"""Goodness of fit of draws: the G-test (likelihood ratio), which unlike a distance between vectors weighs the tail."""

import numpy as np
from scipy import stats


def g_test(counts, probabilities, least=5.0):
    """p-value of ``counts`` under ``probabilities``. Cells expecting fewer than ``least`` are pooled, smallest first;
    a count where the probability is 0 gives 0."""
    counts, probabilities = np.asarray(counts, float).ravel(), np.asarray(probabilities, float).ravel()
    assert abs(probabilities.sum() - 1) < 1e-9
    if counts[probabilities == 0].any():
        return 0.0
    expected = probabilities * counts.sum()
    order = np.argsort(expected)
    order = order[expected[order] > 0]
    label, cell, mass = np.zeros(len(order), int), 0, 0.0
    for i, e in enumerate(expected[order]):
        if mass >= least:
            cell, mass = cell + 1, 0.0
        label[i], mass = cell, mass + e
    if mass < least:
        label[label == cell] = max(0, cell - 1)
    observed, expected = (np.bincount(label, x[order]) for x in (counts, expected))
    assert len(observed) > 1, "one cell tests nothing"
    some = observed > 0
    g = 2 * np.sum(observed[some] * np.log(observed[some] / expected[some]))
    return float(stats.chi2.sf(g, len(observed) - 1))


def same_law(counts_a, counts_b):
    """p-value of two samples having one law (G-test of homogeneity on cells with at least 10 counts)."""
    table = np.array([np.ravel(counts_a), np.ravel(counts_b)], float)
    table = table[:, table.sum(0) >= 10]
    return float(stats.chi2_contingency(table, lambda_="log-likelihood").pvalue)
