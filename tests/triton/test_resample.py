"""``resample`` of the Triton backend, interpreted, against the reference."""

import pytest
import torch
from fastpower.kernels.triton.resample import SCHEMES

from fastpower.kernels import resample


@pytest.mark.parametrize(
    "scheme, n", [*((scheme, n) for scheme in SCHEMES for n in (1, 67)), ("systematic", 1500), ("residual", 1500)]
)
def test_ancestors_ess_and_mean_are_those_of_the_reference(scheme, n):
    """Far from zero, half without weight, none with weight, all alike."""
    g = torch.Generator().manual_seed(n)
    log_weights = 3 * torch.randn(4, n, dtype=torch.float64, generator=g) - 700
    log_weights[1, 1::2] = -torch.inf
    log_weights[2] = -torch.inf
    log_weights[3] = 5.0
    uniforms = torch.rand(4, 1 if scheme == "systematic" else n, dtype=torch.float64, generator=g)
    value, reference = (resample(log_weights, uniforms, scheme=scheme, backend=b) for b in ("triton", "reference"))
    assert torch.equal(value.index, reference.index)
    torch.testing.assert_close(value.ess, reference.ess, atol=0, rtol=1e-12)
    torch.testing.assert_close(value.log_mean, reference.log_mean, atol=0, rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entries_without_weight_have_no_offspring_at_the_edges_of_uniforms(scheme):
    """Weight on every third entry only; uniforms at 0 and just below 1."""
    log_weights = torch.full((20,), -torch.inf, dtype=torch.float64)
    log_weights[1:17:3] = torch.linspace(-2, 0.1, 6, dtype=torch.float64)
    for u in (0.0, 0.5, 1 - 2**-53):
        uniforms = torch.full((1 if scheme == "systematic" else 20,), u, dtype=torch.float64)
        index = resample(log_weights, uniforms, scheme=scheme, backend="triton").index
        assert log_weights[index].isfinite().all()
