"""``pool_rows`` and ``sample_pooled``: accuracy, what is masked, groups of any size, bits, draws."""

import itertools

import pytest
import torch

from fastpower.kernels import Status, pool_rows, sample_pooled, score_tokens
from tests.kernels.backends_live import Way, instruction_sets
from tests.kernels.goodness import g_test
from tests.kernels.sampling_inputs import KINDS, make_keys, make_logits

ULP = 2.0**-23
STARTS = (0, 1, 4, 9)  # groups of 1, 3 and 5 rows


def pool(logits, starts, way):
    """``pool_rows`` run that way, results on the CPU."""
    value = pool_rows(logits.to(way.device), torch.tensor(starts, device=way.device), backend=way.backend)
    return type(value)(*(x.cpu() for x in value))


def bits(pooled):
    return [x.view(torch.int32) if x.dtype == torch.float32 else x for x in pooled]


def assert_same_bits(a, b):
    assert all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@pytest.mark.parametrize("kind", [*KINDS, "rising", "lowest"])
@pytest.mark.parametrize("vocab", [2, 127, 4097, 9001])
def test_pools_are_those_of_the_reference(fast, kind, vocab):
    z = make_logits(kind, 9, vocab)
    value, right = pool(z, STARTS, fast), pool(z, STARTS, Way("reference", "cpu"))
    assert torch.equal(value.status, right.status)
    sizes = torch.tensor(STARTS).diff()
    atol = 2e-5 * sizes.max().item()
    torch.testing.assert_close(value.pooled, right.pooled, atol=atol, rtol=2 * ULP)
    torch.testing.assert_close(value.log_mass, right.log_mass, atol=atol, rtol=2 * ULP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["model", "normal", "huge"])
def test_error_is_at_most_twice_that_of_torch_in_float32(fast, kind, dtype):
    z = make_logits(kind, 9, 49152).to(dtype)
    exact = pool(z, STARTS, Way("reference", "cpu"))
    value = pool(z, STARTS, fast)
    logp = torch.log_softmax(z.double(), 1)
    groups = list(itertools.pairwise(STARTS))
    right = torch.stack([logp[a:b].sum(0) for a, b in groups])
    eager = torch.stack([torch.log_softmax(z.float(), 1)[a:b].sum(0) for a, b in groups])
    rounding = ULP * right.abs().max().item() + 1e-7
    assert (value.pooled.double() - right).abs().max() <= 2 * (eager.double() - right).abs().max() + rounding
    mass, theirs = right.logsumexp(1), eager.logsumexp(1).double()
    rounding = ULP * mass.abs().max().item() + 1e-7
    assert (value.log_mass.double() - mass).abs().max() <= 2 * (theirs - mass).abs().max() + rounding
    assert torch.equal(value.status, exact.status)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_row_is_its_log_softmax_and_has_mass_one(way, kind):
    z = make_logits(kind, 1, 5003)
    value = pool(z, [0, 1], way)
    tokens = torch.arange(0, 5003, 311)
    logp = score_tokens(z.expand(len(tokens), -1), tokens, torch.empty(0), backend="reference").logp
    torch.testing.assert_close(value.pooled[0, tokens], logp, atol=2e-5, rtol=ULP)
    assert -1e-5 < value.log_mass.item() <= 0


def test_k_copies_of_a_row_have_the_mass_of_its_kth_power(way):
    z = make_logits("model", 1, 5003)
    for k in (2, 3, 8):
        value = pool(z.expand(k, -1), [0, k], way)
        logz = score_tokens(z, torch.tensor([0]), torch.tensor([float(k)]), backend="reference").logz
        torch.testing.assert_close(value.log_mass, logz[0], atol=2e-5 * k, rtol=ULP)


def test_a_token_that_one_row_masks_is_masked_in_the_pool_and_in_no_other_group(way):
    z = make_logits("normal", 4, 4099)
    z[1, 17] = z[0, 4098] = -torch.inf
    value = pool(z, [0, 2, 4], way)
    assert value.pooled[0, [17, 4098]].tolist() == [-torch.inf] * 2 and value.pooled[1].isfinite().all()
    assert value.pooled[0].isinf().sum() == 2 and value.log_mass.isfinite().all() and not value.status.any()


def test_rows_that_exclude_each_other_have_no_mass_and_draw_nothing(way):
    z = torch.zeros(4, 5000)
    z[0, :2500] = z[1, 2500:] = -torch.inf
    value = pool(z, [0, 2, 4], way)
    assert value.log_mass[0] == -torch.inf and value.log_mass[1].isfinite() and not value.status.any()
    drawn = sample_pooled(
        z.to(way.device), *(x.to(way.device) for x in (torch.tensor([0, 2, 4]), *make_keys(2, 0))), backend=way.backend
    )
    assert drawn.token[0] == -1 and drawn.token[1] >= 0 and drawn.logp[0].isnan()
    assert drawn.log_mass.cpu()[0] == -torch.inf


def test_a_row_without_a_distribution_says_so_in_its_group_alone(way):
    z = make_logits("normal", 8, 5000)
    z[1, 4800], z[3, 17], z[5] = torch.nan, torch.inf, -torch.inf
    z[6], z[7, 3] = -torch.inf, torch.nan
    value = pool(z, [0, 1, 2, 4, 6, 8], way)
    assert value.status.tolist() == [0, Status.NAN, Status.NAN, Status.MASKED, Status.NAN | Status.MASKED]
    assert value.pooled[0].isfinite().all() and value.pooled[1:].isnan().all()
    assert value.log_mass.isnan().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("vocab", [5, 300, 9001])
def test_a_group_has_the_same_bits_alone_in_a_batch_and_at_any_stride(way, vocab):
    z = make_logits("normal", 9, vocab)
    whole = pool(z, STARTS, way)
    wide = torch.full((18, vocab + 3), torch.nan)
    wide[::2, 3:] = z
    assert_same_bits(whole, pool(wide[::2, 3:], STARTS, way))
    for g, (a, b) in enumerate(itertools.pairwise(STARTS)):
        assert_same_bits(pool(z[a:b], [0, b - a], way), [x[g : g + 1] for x in whole])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rows_give_the_bits_of_the_same_rows_in_float32(way, dtype):
    z = make_logits("model", 9, 9001).to(dtype)
    assert_same_bits(pool(z, STARTS, way), pool(z.float(), STARTS, way))


@pytest.mark.parametrize("isa", instruction_sets()[-1:])
@pytest.mark.parametrize("rows, vocab", [(2, 151936), (40, 4097), (300, 130)])
def test_bits_do_not_depend_on_the_number_of_threads(threads, isa, rows, vocab):
    way, z = Way("cpu", "cpu", isa), make_logits("model", rows, vocab)
    threads(1)
    alone = pool(z, range(0, rows + 1, 2), way)
    for n in (2, 5):
        threads(n)
        assert_same_bits(alone, pool(z, range(0, rows + 1, 2), way))


def test_no_groups_are_fine(way):
    value = pool(torch.zeros(0, 7), [0], way)
    assert value.pooled.shape == (0, 7) and value.log_mass.shape == value.status.shape == (0,)


def test_draws_follow_the_normalised_product_and_not_one_row(fast):
    p = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.3, 0.5, 0.1]], dtype=torch.float64)
    places = torch.tensor([0, 4095, 4096, 4999])
    z = torch.full((2, 5000), -torch.inf)
    z[:, places] = p.log().float()
    n = 2000
    starts = torch.arange(0, 2 * n + 1, 2)
    drawn = sample_pooled(z.repeat(n, 1), starts, *make_keys(n, 3), backend=fast.backend)
    product = p.prod(0)
    counts = (drawn.token[:, None] == places).sum(0)
    assert counts.sum() == n and g_test(counts, product / product.sum()) > 1e-3
    assert g_test(counts, p[0]) < 1e-6
    torch.testing.assert_close(drawn.log_mass, product.sum().log().float().expand(n), atol=1e-5, rtol=0)


@pytest.mark.parametrize("starts", [[1, 3], [0, 2], [0, 2, 2, 3], [0, 2, 1, 3], [0, 4], [-1, 3]])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_starts_that_do_not_rise_from_zero_to_the_rows_are_refused(backend, starts):
    with pytest.raises(ValueError, match=r"pool_rows: starts\[\d\] must .*from 0 to 3, .*, got -?\d"):
        pool_rows(torch.zeros(3, 5), torch.tensor(starts), backend=backend)
