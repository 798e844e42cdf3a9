"""Groups of rows of logits pooled to one row each, float64 inside: the specification of ``pool_rows``.

With p_k = softmax(z_k) for the rows k of a group g:

    pooled[g, v] = sum_k log p_k(v)        log_mass[g] = log sum_v prod_k p_k(v)

so softmax(pooled[g]) is the law of a token on which independent draws from all rows agree, and exp(log_mass[g]) the
probability that they do. A token that one row masks is masked in the pool; where nothing is left log_mass is -inf. A
row of NaN or +inf, or without a finite entry, leaves its group NaN, and says so.
"""

from __future__ import annotations

import torch

from .sample_tokens import row_statistics


def pool_rows(logits, starts):
    """(pooled (G, V) float32, log_mass (G,) float32, status (G,) int32); the facade's docstring is the contract."""
    logp, _, _, row_status = row_statistics(logits, logits.new_empty(0, dtype=torch.float32))
    groups, vocab = len(starts) - 1, logits.shape[1]
    pooled = torch.empty(groups, vocab, dtype=torch.float64, device=logits.device)
    status = torch.empty(groups, dtype=torch.int32, device=logits.device)
    for g in range(groups):
        rows = slice(int(starts[g]), int(starts[g + 1]))
        pooled[g] = logp[rows].sum(0)
        status[g] = 0
        for bit in row_status[rows].unique():
            status[g] |= bit
    return pooled.float(), torch.logsumexp(pooled, 1).clamp_max(0.0).float(), status
