"""``resample``: ancestors by every scheme, effective sample size and mean weight."""

import math
import re

import pytest
import torch

from fastpower.kernels import resample
from fastpower.kernels.resampling import SCHEMES
from tests.kernels.goodness import g_test

BACKENDS = ["reference", "cpu"]
P_LEAST = 1e-4


def make_sets(sets, count, seed=0, spread=1.5):
    g = torch.Generator().manual_seed(seed)
    log_weights = spread * torch.randn(sets, count, dtype=torch.float64, generator=g) - 700.0
    if count > 2:
        log_weights[:, 1::5] = -torch.inf
    return log_weights


def make_uniforms(sets, count, scheme, seed=0):
    g = torch.Generator().manual_seed(seed + 1)
    return torch.rand(sets, 1 if scheme == "systematic" else count, dtype=torch.float64, generator=g)


def offspring(index):
    return torch.stack([torch.bincount(row, minlength=index.shape[1]) for row in index])


@pytest.mark.parametrize("count", [1, 2, 7, 1001])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_cpu_gives_the_ancestors_of_the_reference(scheme, count):
    log_weights, u = make_sets(5, count), make_uniforms(5, count, scheme)
    value, right = (resample(log_weights, u, scheme=scheme, backend=backend) for backend in ("cpu", "reference"))
    assert torch.equal(value.index, right.index)
    torch.testing.assert_close(value.ess, right.ess, rtol=1e-13, atol=0)
    torch.testing.assert_close(value.log_mean, right.log_mean, rtol=1e-13, atol=0)
    one = resample(log_weights[2], u[2], scheme=scheme, backend="cpu")
    assert torch.equal(one.index, value.index[2]) and one.ess == value.ess[2] and one.log_mean == value.log_mean[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_effective_size_and_mean_are_those_of_the_weights(backend):
    log_weights = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64).log() + 900.0
    u = torch.tensor([0.25], dtype=torch.float64)
    result = resample(log_weights, u, backend=backend)
    assert math.isclose(result.ess, 4.0**2 / (0.25 + 4 + 2.25))
    assert math.isclose(result.log_mean, 900.0 + math.log(1.0), rel_tol=1e-15)
    assert result.index.tolist() == [0, 1, 1, 3]  # 1/16, 5/16, 9/16, 13/16 of shares 1/8, 5/8, 5/8, 1
    equal = resample(torch.full((50,), -3.0, dtype=torch.float64), u, backend=backend)
    assert math.isclose(equal.ess, 50) and math.isclose(equal.log_mean, -3) and equal.index.tolist() == list(range(50))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", ["systematic", "residual"])
def test_offspring_are_the_expected_number_rounded(backend, scheme):
    """Down or up for systematic; residual never loses a whole copy."""
    log_weights = make_sets(40, 37, seed=3)
    n = offspring(resample(log_weights, make_uniforms(40, 37, scheme, 3), scheme=scheme, backend=backend).index)
    expected = 37 * torch.softmax(log_weights, 1)
    assert (n >= expected.floor()).all()
    if scheme == "systematic":
        assert (n <= expected.ceil()).all()
    assert (n.sum(1) == 37).all() and (n > expected.floor()).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_stratified_ancestors_lie_in_their_strata(backend):
    log_weights, u = make_sets(20, 31, seed=4), make_uniforms(20, 31, "stratified", 4)
    index = resample(log_weights, u, scheme="stratified", backend=backend).index
    share = torch.softmax(log_weights, 1).cumsum(1)
    before = (share - torch.softmax(log_weights, 1)).gather(1, index)
    k = torch.arange(31)
    assert (before < (k + 1) / 31).all() and (share.gather(1, index) > k / 31 - 1e-12).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_expected_offspring_are_proportional_to_the_weights(backend, scheme):
    """Unbiasedness. Counts of dependent ancestors vary less than multinomial ones, so every set gives one ancestor."""
    sets = 4000
    log_weights = make_sets(1, 9, seed=5).expand(sets, 9)
    index = resample(log_weights, make_uniforms(sets, 9, scheme, 5), scheme=scheme, backend=backend).index
    pick = torch.randint(9, (sets, 1), generator=torch.Generator().manual_seed(6))
    counts = torch.bincount(index.gather(1, pick)[:, 0], minlength=9)
    assert g_test(counts, torch.softmax(log_weights[0], 0)) > P_LEAST


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_particles_without_weight_have_no_offspring_at_any_uniform(backend, scheme, u):
    log_weights = torch.full((20,), -torch.inf, dtype=torch.float64)
    log_weights[1:17:3] = torch.linspace(-2, 0.1, 6, dtype=torch.float64)
    uniforms = torch.full((1 if scheme == "systematic" else 20,), u, dtype=torch.float64)
    index = resample(log_weights, uniforms, scheme=scheme, backend=backend).index
    assert log_weights[index].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_set_without_weight_has_no_ancestors_and_others_are_untouched(backend, scheme):
    log_weights, u = make_sets(3, 11), make_uniforms(3, 11, scheme)
    whole = resample(log_weights, u, scheme=scheme, backend=backend)
    log_weights[1] = -torch.inf
    result = resample(log_weights, u, scheme=scheme, backend=backend)
    assert result.index[1].tolist() == [-1] * 11 and result.ess[1] == 0 and result.log_mean[1] == -torch.inf
    assert torch.equal(result.index[[0, 2]], whole.index[[0, 2]])


W, U = torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 1), 0.5, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "log_weights, uniforms, scheme, error, message",
    [
        (W, U, "best", ValueError, "scheme must be one of 'systematic', "),
        (W.float(), U, "systematic", TypeError, "log_weights must be float64, got float32"),
        ([0.0], U, "systematic", TypeError, "log_weights must be a torch.Tensor, got list"),
        (W[None], U, "systematic", ValueError, "log_weights must have shape (R?, N), got (1, 2, 3)"),
        (W[:, :0], U, "systematic", ValueError, "log_weights must hold at least one particle"),
        (W, U[0], "systematic", ValueError, "uniforms must have shape (2, 1), got (1,)"),
        (W, U, "stratified", ValueError, "uniforms must have shape (2, 3), got (2, 1)"),
        (W, U + 0.5, "systematic", ValueError, "uniforms[0, 0] must be in [0, 1), got 1"),
        (W, U - torch.inf, "systematic", ValueError, "uniforms[0, 0] must be in [0, 1), got -inf"),
        (W * torch.nan, U, "systematic", ValueError, "log_weights[0, 0] must be finite or -inf, got nan"),
        (W + torch.inf, U, "systematic", ValueError, "log_weights[0, 0] must be finite or -inf, got inf"),
    ],
)
def test_bad_argument_is_named(backend, log_weights, uniforms, scheme, error, message):
    with pytest.raises(error, match=re.escape("resample: " + message)):
        resample(log_weights, uniforms, scheme=scheme, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_registered_resample_passes_opcheck(backend, scheme):
    arguments = (make_sets(2, 7), make_uniforms(2, 7, scheme), scheme, backend)
    torch.library.opcheck(torch.ops.fastpower.resample.default, arguments)


def test_compiles_as_one_graph():
    def step(log_weights, u):
        result = resample(log_weights, u)
        return log_weights.gather(1, result.index), result.log_mean + 1

    arguments = make_sets(3, 9), make_uniforms(3, 9, "systematic")
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(*arguments), step(*arguments), strict=True))
