"""``pool_rows`` of the Triton backend, interpreted, against the reference."""

import pytest
import torch

from fastpower.kernels import Status, pool_rows, sample_pooled
from tests.kernels.sampling_inputs import KINDS, make_keys, make_logits

ULP = 2.0**-23
STARTS = torch.tensor([0, 1, 4])  # groups of 1 and 3 rows


def bits(pooled):
    return [x.view(torch.int32) if x.dtype == torch.float32 else x for x in pooled]


@pytest.mark.parametrize("vocab", [2, 9001])
@pytest.mark.parametrize("kind", KINDS)
def test_pools_are_those_of_the_reference(kind, vocab):
    z = make_logits(kind, 4, vocab)
    value, right = (pool_rows(z, STARTS, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(value.status, right.status)
    for name in ("pooled", "log_mass"):
        torch.testing.assert_close(getattr(value, name), getattr(right, name), atol=6e-5, rtol=2 * ULP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_torch_in_float32(dtype):
    z = make_logits("model", 4, 9001).to(dtype)
    value = pool_rows(z, STARTS, backend="triton")
    right, eager = (torch.log_softmax(x, 1) for x in (z.double(), z.float()))
    right, eager = (torch.stack([x[:1].sum(0), x[1:].sum(0)]) for x in (right, eager))
    for mine, exact, their in ((value.pooled, right, eager), (value.log_mass, right.logsumexp(1), eager.logsumexp(1))):
        rounding = ULP * exact.abs().max().item() + 1e-7
        assert (mine.double() - exact).abs().max() <= 2 * (their.double() - exact).abs().max() + rounding


def test_rows_that_exclude_each_other_have_no_mass_and_faulty_rows_say_so():
    z = make_logits("normal", 8, 5000)
    z[0, :2500] = z[1, 2500:] = -torch.inf
    z[3, 4800], z[5] = torch.nan, -torch.inf
    z[6], z[7, 3] = -torch.inf, torch.inf
    value = pool_rows(z, torch.tensor([0, 2, 4, 6, 8]), backend="triton")
    assert value.status.tolist() == [0, Status.NAN, Status.MASKED, Status.NAN | Status.MASKED]
    assert value.log_mass[0] == -torch.inf and (value.pooled[0] == -torch.inf).all()
    assert value.log_mass[1:].isnan().all() and value.pooled[1:].isnan().all()


def test_a_group_alone_and_strided_gives_the_bits_it_has_in_a_batch():
    z = make_logits("model", 4, 5003)
    batch = pool_rows(z, STARTS, backend="triton")
    padded = torch.full((6, 6001), torch.nan)[::2, 13 : 13 + 5003]
    padded.copy_(z[1:])
    alone = pool_rows(padded, torch.tensor([0, 3]), backend="triton")
    assert all(torch.equal(x, y[1:]) for x, y in zip(bits(alone), bits(batch), strict=True))


def test_draws_are_those_of_the_reference():
    z, keys = make_logits("model", 4, 9001), make_keys(2, 5)
    value, right = (sample_pooled(z, STARTS, *keys, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(value.token, right.token) and value.token.min() >= 0
    torch.testing.assert_close(value.logp, right.logp, atol=6e-5, rtol=ULP)


def test_groups_that_reach_outside_the_batch_read_no_row_beyond_it():
    """Only the device can see where groups begin, so no façade can refuse it there."""
    from fastpower.kernels.triton import pool_rows as kernels

    z = make_logits("normal", 3, 300)
    wrong, right = (kernels.pool_rows(z, torch.tensor(starts)) for starts in ([-2, 2, 9], [0, 2, 3]))
    assert all(torch.equal(x, y) for x, y in zip(bits(wrong), bits(right), strict=True))
