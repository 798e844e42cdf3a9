"""csrc/cuda/sample_tokens.cu, run thread by thread on the CPU, against the float64 reference."""

import pytest
import torch
from fastpower.kernels.reference import sample_tokens as reference

from fastpower.kernels.cuda.sample_tokens import sample_tokens, workspace
from fastpower.kernels.cuda.score_tokens import score_tokens
from tests.kernels.sampling_inputs import KINDS, make_case, make_logits

pytestmark = pytest.mark.usefixtures("emulated")
TOKEN, LOGP, LOGZ, ENTROPY, STATUS = range(5)
NAN, MASKED, EXHAUSTED = 1, 2, 4


def eager(case):
    """(logp of all tokens, logz, entropy) the usual way, in float32."""
    logp = torch.log_softmax(case.logits.float(), 1)
    logz = torch.stack([torch.logsumexp(e * logp, 1) for e in case.exponents], 1)
    return logp, logz, -torch.where(logp == -torch.inf, 0.0, logp.exp() * logp).sum(1)


def error(values, truth):
    return (values.double() - truth).abs().max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [2, 127, 4096, 9001])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_as_good_as_eager_float32_and_draws_those_of_the_reference(kind, vocab, dtype):
    if kind == "huge" and dtype is torch.float16:
        dtype = torch.float32  # 1e4 is no logit for float16
    case = make_case(kind, rows=2, vocab=vocab, draws=3, alpha=1.7, exponents=(1.0, 1.7, 4.0, 0.5), dtype=dtype)
    got = sample_tokens(*case)
    logp, logz, entropy, status = reference.row_statistics(case.logits, case.exponents)
    for ours, truth, theirs in zip(got[2:4], (logz, entropy), eager(case)[1:], strict=True):
        assert error(ours, truth) <= 2 * error(theirs, truth) + 1e-6
    assert torch.equal(got[STATUS], status)
    assert torch.equal(got[TOKEN], reference.sample_tokens(*case)[TOKEN])
    drawn = logp[case.rows, got[TOKEN]]
    assert error(got[LOGP], drawn) <= 2 * error(eager(case)[0][case.rows, got[TOKEN]], drawn) + 1e-6
    assert (got[LOGZ][:, 0] == 0).all()  # exponent 1


@pytest.mark.parametrize("order", [1, 7])
def test_no_result_depends_on_the_order_in_which_threads_run(order, emulated):
    case = make_case("masked_blocks", rows=2, vocab=9001, draws=4, alpha=3.0)
    case = case._replace(exclude=reference.sample_tokens(*case)[TOKEN])
    emulated(0)
    ascending = sample_tokens(*case)
    emulated(order)
    for a, b in zip(ascending, sample_tokens(*case), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_of_a_row_depend_on_that_row_alone(dtype):
    vocab = 4096 + 37
    case = make_case("model", rows=5, vocab=vocab, alpha=2.0, dtype=dtype)
    batch = sample_tokens(*case)
    wide = torch.full((1, vocab + 1), torch.nan, dtype=dtype)
    wide[0, 1:] = case.logits[3]  # another address, so another alignment, another stride, another batch
    assert (wide[:, 1:].data_ptr() - case.logits[3].data_ptr()) % 16 != 0
    draw = slice(3, 4)
    alone = sample_tokens(
        wide[:, 1:], case.alpha[:1], case.exponents, torch.tensor([0]), case.keys[draw], case.positions[draw]
    )
    for together, single in zip(batch, alone, strict=True):
        assert torch.equal(together[draw], single)


def test_aligned_and_unaligned_rows_have_the_same_bits():
    vocab = 2 * 4096
    case = make_case("model", rows=1, vocab=vocab, draws=1)
    storage = torch.empty(vocab + 8)
    start = (16 - storage.data_ptr() % 16) // 4 % 4
    results = []
    for offset in (start, start + 1):
        row = storage[offset : offset + vocab].view(1, vocab)
        row.copy_(case.logits)
        assert (row.data_ptr() % 16 == 0) == (offset == start)
        results.append(sample_tokens(row, *case[1:]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_logz_does_not_depend_on_whether_the_draw_shares_its_exponent():
    case = make_case("model", rows=2, vocab=4097, alpha=4.0, exponents=(4.0,))
    other = case._replace(alpha=torch.full((2,), 2.0))
    assert torch.equal(sample_tokens(*case)[LOGZ], sample_tokens(*other)[LOGZ])


def test_draws_of_one_row_are_those_of_as_many_equal_rows():
    case = make_case("normal", rows=1, vocab=4099, draws=7, alpha=1.3)
    seven = case._replace(logits=case.logits.expand(7, -1), alpha=case.alpha.expand(7), rows=torch.arange(7))
    assert torch.equal(sample_tokens(*case)[TOKEN], sample_tokens(*seven)[TOKEN])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_excluded_token_is_never_drawn_and_the_rest_as_the_reference_does(alpha):
    case = make_case("normal", rows=2, vocab=5003, draws=6, alpha=alpha)
    case = case._replace(exclude=reference.sample_tokens(*case)[TOKEN])  # without exclude these would be drawn
    case.exclude[0] = -1
    got = sample_tokens(*case)
    assert torch.equal(got[TOKEN], reference.sample_tokens(*case)[TOKEN])
    assert (got[TOKEN][1:] != case.exclude[1:]).all()
    assert got[TOKEN][0] == reference.sample_tokens(*case._replace(exclude=None))[TOKEN][0]


def test_what_is_left_after_exclude_is_drawn_exactly_however_little_it_is():
    logits = torch.full((1, 8193), -300.0)  # e^-600 of the excluded token, at alpha 2 e^-1200
    logits[0, 4100] = 300.0
    logits[0, [17, 4101]] = torch.tensor([-298.0, -299.0])
    case = make_case(rows=1, vocab=8193, draws=40, alpha=2.0)._replace(logits=logits, exclude=torch.full((40,), 4100))
    got = sample_tokens(*case)
    assert torch.equal(got[TOKEN], reference.sample_tokens(*case)[TOKEN])
    assert len(got[TOKEN].unique()) > 20  # 8190 tokens share e^4 + e^2 to 8190: neither peak takes all
    assert got[STATUS].item() == 0


def test_rows_that_cannot_be_drawn_from_say_so_and_give_no_token():
    logits = make_logits("normal", 6, 4100)
    logits[0, 4099] = torch.nan
    logits[1, 5] = torch.inf
    logits[2] = -torch.inf
    logits[3] = -torch.inf
    logits[3, 4098] = 1.0
    logits[5] = -torch.inf
    logits[5, 7] = torch.nan
    case = make_case(rows=6, vocab=4100)._replace(logits=logits, exclude=torch.tensor([-1, -1, -1, 4098, 3, -1]))
    got = sample_tokens(*case)
    assert got[STATUS].tolist() == [NAN, NAN, MASKED, EXHAUSTED, 0, NAN]
    assert torch.equal(got[STATUS], reference.sample_tokens(*case)[STATUS])
    assert (got[TOKEN] < 0).tolist() == [True, True, True, True, False, True]
    assert got[LOGP].isnan().tolist() == [True, True, True, True, False, True]
    dead = [True, True, True, False, False, True]
    assert got[ENTROPY].isnan().tolist() == dead
    assert got[LOGZ].isnan().all(1).tolist() == got[LOGZ].isnan().any(1).tolist() == dead


def test_indices_out_of_range_on_the_device_draw_nothing_and_exclude_nothing():
    case = make_case("normal", rows=2, vocab=127, draws=4)
    plain = sample_tokens(*case)
    wrong = case._replace(rows=torch.tensor([-1, 2, *case.rows[2:]]), exclude=torch.tensor([-1, -1, 127, -2]))
    got = sample_tokens(*wrong)
    assert got[TOKEN].tolist() == [-1, -1, *plain[TOKEN][2:].tolist()]
    assert got[LOGP][:2].isnan().all()


@pytest.mark.parametrize("rows, draws, exponents", [(2, 0, (2.0,)), (2, 3, ()), (0, 0, (2.0,))])
def test_empty_batches_draws_and_exponents(rows, draws, exponents):
    case = make_case("normal", rows=2, vocab=129, draws=draws, exponents=exponents)
    case = case._replace(logits=case.logits[:rows], alpha=case.alpha[:rows])
    got = sample_tokens(*case)
    expected = reference.sample_tokens(*case) if rows else None
    assert [tuple(x.shape) for x in got] == [(draws,), (draws,), (rows, len(exponents)), (rows,), (rows,)]
    if expected is not None:
        assert torch.equal(got[TOKEN], expected[TOKEN])
        torch.testing.assert_close(got[LOGZ], expected[LOGZ])


def test_score_tokens_gives_the_bits_of_sample_tokens():
    case = make_case("masked_blocks", rows=3, vocab=4097, draws=6, alpha=2.0)
    drawn = sample_tokens(*case)
    scored = score_tokens(case.logits[case.rows], drawn[TOKEN], case.exponents)
    assert torch.equal(scored[0], drawn[LOGP])
    for score, of_row in zip(scored[1:], drawn[2:], strict=True):
        assert torch.equal(score, of_row[case.rows])


def test_score_of_a_masked_token_is_minus_infinity_and_of_none_nan():
    logits = make_logits("normal", 3, 130)
    logits[0, 4] = -torch.inf
    logits[2] = -torch.inf
    logp, _, entropy, status = score_tokens(logits, torch.tensor([4, 130, 0]), torch.tensor([2.0]))
    assert logp[0] == -torch.inf
    assert logp[1].isnan() and entropy[1].isfinite()
    assert logp[2].isnan() and status.tolist() == [0, 0, MASKED]


def test_outputs_and_scratch_of_the_caller_have_the_same_bits():
    case = make_case("normal", rows=3, vocab=9001, draws=4)
    expected = sample_tokens(*case)
    size = workspace(case.logits, case.exponents)
    out = tuple(torch.full_like(x, -7) for x in expected)
    small, room = (torch.empty(n, dtype=torch.uint8) for n in (size - 1, size))
    with pytest.raises(ValueError, match=rf"workspace has {size - 1} bytes, this call needs {size}"):
        sample_tokens(*case, out=out, workspace=small)
    assert all((x == -7).all() for x in out)
    results = sample_tokens(*case, out=out, workspace=room)
    assert all(a is b and torch.equal(a, c) for a, b, c in zip(results, out, expected, strict=True))
