"""``resample`` of the Triton backend, interpreted, against its definition in numpy."""

import numpy as np
import pytest
import torch
from fastpower.kernels.triton.resample import SCHEMES, resample


def defined(log_weights, u, scheme):
    """(ancestors, ess, log mean weight) of one row."""
    n = len(log_weights)
    w = np.exp(log_weights - log_weights.max())
    share = w / w.sum()
    if scheme == "residual":
        whole = np.floor(n * share).astype(int)
        copies = np.repeat(np.arange(n), whole)
        fraction = np.cumsum(n * share - whole)
        rest = np.searchsorted(fraction, u[: n - len(copies)] * fraction[-1], side="right")
        ancestors = np.concatenate([copies, rest])
    else:
        t = dict(systematic=(np.arange(n) + u[:1]) / n, stratified=(np.arange(n) + u[:n]) / n, multinomial=u[:n])[
            scheme
        ]
        ancestors = np.searchsorted(np.cumsum(share), t, side="right")
    return ancestors, w.sum() ** 2 / (w**2).sum(), log_weights.max() + np.log(w.mean())


@pytest.mark.parametrize("n", [1, 67, 1500])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_ess_and_mean_are_those_of_the_definition(scheme, n):
    g = torch.Generator().manual_seed(n)
    log_weights = 3 * torch.randn(2, n, dtype=torch.float64, generator=g) - 700
    log_weights[1, n // 2 :: 2] = -torch.inf if n > 1 else -1.0
    uniforms = torch.rand(2, 1 if scheme == "systematic" else n, dtype=torch.float64, generator=g)
    result = resample(log_weights, uniforms, scheme=scheme)
    for row in range(2):
        ancestors, ess, log_mean = defined(log_weights[row].numpy(), uniforms[row].numpy(), scheme)
        assert result.index[row].tolist() == ancestors.tolist()
        assert abs(result.ess[row] - ess) < 1e-9 * n and abs(result.log_mean[row] - log_mean) < 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entries_without_weight_have_no_offspring_at_the_edges_of_uniforms(scheme):
    """Weight on every third entry only; uniforms at 0 and just below 1."""
    log_weights = torch.full((20,), -torch.inf, dtype=torch.float64)
    log_weights[1:17:3] = torch.linspace(-2, 0.1, 6, dtype=torch.float64)
    for u in (0.0, 0.5, 1 - 2**-53):
        uniforms = torch.full((1 if scheme == "systematic" else 20,), u, dtype=torch.float64)
        index = resample(log_weights, uniforms, scheme=scheme).index
        assert log_weights[index].isfinite().all()
