"""Ancestors of a particle set from its log-weights, float64 throughout: the specification of ``resample``.

With w_i = e^(lw_i - m), m = max lw, W_i = w_i / sum w and C_i = w_0 + … + w_i:

    ess = (sum w)^2 / sum w^2        log_mean = m + log sum w - log N

Ancestor k is the first index with C_i > t_k sum w (never one without weight), where u are the caller's uniforms and

    systematic   t_k = (k + u_0) / N      offspring of i are floor(N W_i) or ceil(N W_i), from one uniform
    stratified   t_k = (k + u_k) / N
    multinomial  t_k = u_k
    residual     the first sum floor(N W_i) ancestors are those whole copies, in index order; the others are multinomial
                 on the fractions N W_i - floor(N W_i), the j-th of them with u_j

Douc, Cappé, Moulines, *Comparison of resampling schemes for particle filtering*, 2005.
"""

from __future__ import annotations

import torch

SCHEMES = ("systematic", "stratified", "multinomial", "residual")


def first_above(mass, threshold):
    """For each threshold in [0, 1) the first index whose running sum exceeds that share of the total."""
    running = mass.cumsum(0)
    index = torch.searchsorted(running, threshold * running[-1], right=True)
    last = int((mass > 0).nonzero().max())  # rounding at the very end
    return index.clamp_max(last)


def ancestors(weight, u, scheme):
    """(N,) int64 of one set with weights (N,) and uniforms (N,), or (1,) for systematic."""
    count = len(weight)
    k = torch.arange(count, dtype=torch.float64, device=weight.device)
    if scheme == "residual":
        expected = count * (weight / weight.sum())
        copies = expected.floor()
        kept = torch.arange(count, dtype=torch.int64, device=weight.device).repeat_interleave(copies.long())
        if len(kept) == count:
            return kept
        return torch.cat([kept, first_above(expected - copies, u[: count - len(kept)])])
    return first_above(weight, u if scheme == "multinomial" else (k + u) / count)


def resample(log_weights, uniforms, *, scheme="systematic"):
    """(index (…, N) int64, ess (…,) float64, log_mean (…,) float64); the façade's docstring is the contract."""
    shape = log_weights.shape
    rows, draws = log_weights.reshape(-1, shape[-1]), uniforms.reshape(-1, uniforms.shape[-1])
    top = rows.amax(1)
    dead = top == -torch.inf
    weight = torch.exp(rows - torch.where(dead, 0.0, top)[:, None])
    total = weight.sum(1)
    ess = torch.where(dead, 0.0, total.square() / weight.square().sum(1))
    log_mean = top + torch.log(total / shape[-1])
    index = torch.full_like(rows, -1, dtype=torch.int64)
    for i in (~dead).nonzero()[:, 0]:
        index[i] = ancestors(weight[i], draws[i], scheme)
    return index.view(shape), ess.view(shape[:-1]), log_mean.view(shape[:-1])
