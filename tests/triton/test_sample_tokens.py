"""``sample_tokens`` and ``score_tokens`` of the Triton backend, interpreted, against the float64 reference."""

import pytest
import torch
import triton
import triton.language as tl
from fastpower.kernels.reference.philox import philox4x32, uniform32
from fastpower.kernels.triton import sample_tokens as kernels
from fastpower.kernels.triton.sample_tokens import uniforms

from fastpower.kernels import Status, sample_tokens, score_tokens
from tests.kernels.goodness import g_test
from tests.kernels.sampling_inputs import KINDS, make_case, make_logits, many_draws

ATOL = 2e-5  # of logp, logz and entropy against float64, as for the C++ kernels
ULP = 2.0**-23
EXPONENTS = (1.0, 1.5, 4.0, 0.25)


def assert_same_statistics(value, reference):
    assert torch.equal(value.status, reference.status)
    for name in ("logp", "logz", "entropy"):
        torch.testing.assert_close(getattr(value, name), getattr(reference, name), atol=ATOL, rtol=ULP, equal_nan=True)


def bits(x):
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def assert_same_bits(a, b):
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


@triton.jit
def uniforms_kernel(keys_ptr, positions_ptr, out_ptr):
    i = tl.program_id(0)
    u0, u1 = uniforms(tl.load(keys_ptr + i), tl.load(positions_ptr + i))
    tl.store(out_ptr + 2 * i, u0)
    tl.store(out_ptr + 2 * i + 1, u1)


def test_uniforms_have_the_bits_of_the_reference():
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0])
    positions = torch.tensor([0, 7, 2**31, 2**32 - 1, 2**32 + 5, -1])
    out = torch.empty(6, 2, dtype=torch.float64)
    uniforms_kernel[(6,)](keys, positions, out)
    words = philox4x32(keys.numpy(), positions.numpy())
    expected = torch.stack([torch.from_numpy(uniform32(w)) for w in words[:2]], 1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("vocab", [2, 9001])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_and_tokens_are_those_of_the_reference(kind, vocab):
    case = make_case(kind, 2, vocab, draws=5, alpha=1.5, exponents=EXPONENTS)
    value, reference = (sample_tokens(*case, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(value.token, reference.token)
    assert_same_statistics(value, reference)
    assert value.token.min() >= 0 and value.logp.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_reference(kind):
    z, tokens, exponents = make_logits(kind, 3, 9001), torch.tensor([0, 4500, 9000]), torch.tensor(EXPONENTS)
    assert_same_statistics(*(score_tokens(z, tokens, exponents, backend=b) for b in ("triton", "reference")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_torch_in_float32(dtype):
    z, tokens = make_logits("model", 3, 49152).to(dtype), torch.arange(3) * 7000
    exact, value = (score_tokens(z, tokens, torch.tensor([4.0]), backend=b) for b in ("reference", "triton"))
    logp = torch.log_softmax(z.float(), 1)
    theirs = {
        "logp": logp.gather(1, tokens[:, None])[:, 0],
        "logz": torch.logsumexp(4 * logp, 1)[:, None],
        "entropy": -(logp.exp() * logp).sum(1),
    }
    for name, their in theirs.items():
        mine, right = getattr(value, name).double(), getattr(exact, name).double()
        rounding = ULP * right.abs().max().item() + 1e-7
        assert (mine - right).abs().max() <= 2 * (their.double() - right).abs().max() + rounding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_rows_give_the_bits_of_the_same_rows_in_float32(dtype):
    z = make_logits("model", 3, 9001).to(dtype)
    z[1, 5] = -torch.inf
    case = make_case("model", 3, 9001, draws=8, alpha=1.5)
    low, wide = (sample_tokens(*case._replace(logits=x), backend="triton") for x in (z, z.float()))
    assert_same_bits(low, wide)


def test_a_row_alone_and_strided_gives_the_bits_it_has_in_a_batch():
    case = make_case("model", 3, 5003, alpha=1.5)
    batch = sample_tokens(*case, backend="triton")
    for i in range(3):
        padded = torch.full((2, 6001), torch.nan)
        padded[:, 13 : 13 + 5003] = case.logits[i]
        alone = case._replace(
            **dict(
                logits=padded[1:, 13 : 13 + 5003], alpha=case.alpha[i : i + 1], rows=torch.zeros(1, dtype=torch.int64)
            ),
            **dict(keys=case.keys[i : i + 1], positions=case.positions[i : i + 1]),
        )
        assert_same_bits(sample_tokens(*alone, backend="triton"), [x[i : i + 1] for x in batch])


def test_draws_from_one_row_equal_draws_from_copies_of_the_row():
    case = many_draws(make_logits("model", 1, 9001)[0], 6, alpha=2.0)
    copies = case._replace(logits=case.logits.expand(6, -1), alpha=case.alpha.expand(6), rows=torch.arange(6))
    one, many = (sample_tokens(*c, backend="triton") for c in (case, copies))
    assert torch.equal(one.token, many.token) and torch.equal(one.logp, many.logp)
    assert len(set(one.token.tolist())) > 1


def test_excluded_token_is_never_drawn_and_the_rest_is_drawn_as_by_the_reference():
    """The excluded token outweighs all others by e^60, which subtracting its mass would not survive."""
    z = make_logits("normal", 1, 9001)[0]
    z[4500] = 60.0
    case = many_draws(z, 12, alpha=1.0, exclude=4500)
    value, reference = (sample_tokens(*case, backend=b) for b in ("triton", "reference"))
    assert torch.equal(value.token, reference.token) and (value.token != 4500).all()
    assert_same_statistics(value, reference)


def test_exclusion_applies_to_its_own_draw_only():
    z = torch.full((4200,), -torch.inf)
    z[4100], z[3] = 1.0, 1.0
    case = many_draws(z, 8)._replace(exclude=torch.tensor([-1, 3, 4100, -1, 3, 4100, -1, -1]))
    token = sample_tokens(*case, backend="triton").token
    assert (token[[1, 4]] == 4100).all() and (token[[2, 5]] == 3).all()
    assert set(token.tolist()) == {3, 4100}


def test_rows_without_a_distribution_say_so_and_draw_nothing():
    z = make_logits("normal", 6, 5000)
    z[1, 4800] = torch.nan
    z[2, 17] = torch.inf
    z[3] = -torch.inf
    z[4] = -torch.inf
    z[4, 99] = 0.25
    case = make_case(rows=6, vocab=5000, exponents=(4.0,))._replace(logits=z, exclude=torch.full((6,), 99))
    value, reference = (sample_tokens(*case, backend=b) for b in ("triton", "reference"))
    assert value.status.tolist() == [0, Status.NAN, Status.NAN, Status.MASKED, Status.EXHAUSTED, 0]
    assert value.token[1:5].tolist() == [-1] * 4 and value.token[[0, 5]].min() >= 0
    assert_same_statistics(value, reference)
    masked = score_tokens(z[4:5], torch.tensor([7]), torch.tensor([4.0]), backend="triton")
    assert masked.logp.item() == -torch.inf and masked.status.item() == 0


def test_no_draws_no_rows_and_no_exponents_are_fine():
    empty = make_case(draws=0, exponents=())
    value = sample_tokens(*empty, backend="triton")
    assert value.token.shape == (0,) and value.logz.shape == (3, 0) and value.entropy.isfinite().all()
    nothing = empty._replace(logits=empty.logits[:0], alpha=empty.alpha[:0])
    assert sample_tokens(*nothing, backend="triton").entropy.shape == (0,)


def test_draws_follow_the_power_law():
    """G-test. Three blocks, unequal in mass, one of them empty."""
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    z = torch.full((9000,), -torch.inf)
    places = torch.tensor([0, 4095, 8192, 8500, 8999])
    z[places] = p.log().float() / 4
    token = sample_tokens(*many_draws(z, 150, alpha=4.0), backend="triton").token
    counts = (token[:, None] == places).sum(0)
    assert counts.sum() == 150 and g_test(counts, p) > 1e-3
    assert g_test(counts, p**0.25 / (p**0.25).sum()) < 1e-6  # the same draws are not of exponent 1


def test_a_row_outside_the_batch_draws_nothing_and_touches_no_row():
    """Only the device can see the index, so no façade can refuse it there."""
    case = make_case(rows=2, vocab=129, draws=3)
    wrong = case._replace(rows=torch.tensor([-1, 2, 1]))
    value, right = (kernels.sample_tokens(*c) for c in (wrong, case._replace(rows=torch.tensor([0, 0, 1]))))
    assert value.token.tolist()[:2] == [-1, -1] and value.logp[:2].isnan().all()
    assert value.token[2] == right.token[2] and torch.equal(value.status, torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [1, 7, 4096, 4099])
def test_rows_are_copied_only_where_they_do_not_start_at_16_bytes(vocab, dtype):
    unit = 16 // dtype.itemsize
    wide = torch.zeros(3, vocab + -vocab % unit, dtype=dtype)
    assert kernels.aligned_rows(wide[:, :vocab]).data_ptr() == wide.data_ptr()
    for odd in (torch.randn(3, vocab).to(dtype), torch.randn(3 * (vocab + 1)).to(dtype)[1 : 3 * vocab + 1].view(3, -1)):
        rows = kernels.aligned_rows(odd)
        assert torch.equal(rows, odd) and rows.stride(0) % unit == 0 and rows.data_ptr() % 16 == 0
