"""``sample_tokens`` and ``score_tokens``: accuracy, properties of the statistics, reproducibility."""

import math

import pytest
import torch

from fastpower.kernels import Status
from tests.kernels.backends_live import Way, instruction_sets, sample, score
from tests.kernels.sampling_inputs import EXTREMES, KINDS, VOCABS, make_case, make_logits

ATOL = 2e-5  # |error| of logp, logz and entropy against the float64 reference, besides the rounding of the result
ULP = 2.0**-23
EXPONENTS = (1.0, 1.5, 4.0, 16.0, 0.25, 3.0)


def assert_close(value, reference):
    torch.testing.assert_close(value, reference, atol=ATOL, rtol=ULP, equal_nan=True)


def bits(result):
    return [x.view(torch.int32) if x.dtype == torch.float32 else x for x in result]


def assert_same_bits(a, b):
    assert all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


# Accuracy


@pytest.mark.parametrize(
    "kind, vocab", [(kind, vocab) for kind in KINDS for vocab in VOCABS] + [(kind, 12288) for kind in EXTREMES]
)
def test_statistics_and_tokens_are_those_of_the_reference(fast, kind, vocab):
    if fast.isa == "portable" and vocab > 50_000:
        pytest.skip("slow, and no other code than at 49152")
    for alpha in (1.0, 1.5, 4.0, 16.0):
        case = make_case(kind, 2, vocab, draws=9, alpha=alpha, exponents=EXPONENTS if alpha == 1 else (1.0, alpha))
        value, reference = sample(case, fast), sample(case, Way("reference", "cpu"))
        assert torch.equal(value.status, reference.status)
        assert torch.equal(value.token, reference.token)
        for name in ("logp", "logz", "entropy"):
            assert_close(getattr(value, name), getattr(reference, name))
        assert value.token.min() >= 0 and value.logp.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [127, 9001])
def test_scores_are_those_of_the_reference(fast, kind, vocab):
    z, tokens = make_logits(kind, 5, vocab), torch.tensor([0, 1, vocab // 2, vocab - 1, 77])
    value, reference = (score(z, tokens, EXPONENTS, way) for way in (fast, Way("reference", "cpu")))
    assert torch.equal(value.status, reference.status)
    for name in ("logp", "logz", "entropy"):
        assert_close(getattr(value, name), getattr(reference, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["model", "normal", "huge"])
def test_error_is_at_most_twice_that_of_torch_in_float32(fast, kind, dtype):
    """Inputs of low precision are exact in float32, where both compute; float32's rounding of the result is granted."""
    z, tokens = make_logits(kind, 31, 49152).to(dtype), torch.arange(31) * 1500
    exact, value = (score(z, tokens, (4.0,), way) for way in (Way("reference", "cpu"), fast))
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
@pytest.mark.parametrize("vocab", [7, 9001])
def test_low_precision_rows_give_the_bits_of_the_same_rows_in_float32(way, dtype, vocab):
    z = make_logits("model", 3, vocab).to(dtype)
    z[0, 3] = 1e-6  # subnormal in float16
    z[1, 5] = -torch.inf
    case = make_case("model", 3, vocab, draws=40, alpha=1.5)
    assert_same_bits(sample(case._replace(logits=z), way), sample(case._replace(logits=z.float()), way))


def test_a_row_with_one_finite_logit_is_certain_to_the_last_bit(fast):
    for vocab in (64, 4096, 9001):
        case = make_case("one_finite", 5, vocab, draws=9, alpha=4.0, exponents=(1.0, 1.5, 4.0))
        value = sample(case, fast)
        assert not value.logp.any() and not value.logz.any() and not value.entropy.any()


# Properties


def test_probabilities_of_all_tokens_sum_to_one(way):
    z = make_logits("normal", 1, 127).expand(127, 127)
    scores = score(z, torch.arange(127), (2.5,), way)
    assert abs(scores.logp.double().exp().sum().item() - 1) < 1e-6
    logz = (2.5 * scores.logp.double()).logsumexp(0).float()
    torch.testing.assert_close(scores.logz[:, 0], logz.expand(127), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_logz_vanishes_at_one_falls_with_the_exponent_and_is_convex(way, kind):
    exponents = (0.5, 1.0, 2.0, 3.0, 4.0)
    logz = score(make_logits(kind, 3, 5001), torch.zeros(3, dtype=torch.int64), exponents, way).logz
    assert logz[:, 1].abs().max() < 1e-6
    steps = logz[:, 1:].diff(dim=1)
    assert (logz[:, 0] >= -1e-6).all() and (steps <= 1e-6).all()
    assert (steps.diff(dim=1) >= -1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [2, 129, 8193])
def test_entropy_is_between_zero_and_log_vocab(way, kind, vocab):
    entropy = score(make_logits(kind, 7, vocab), torch.zeros(7, dtype=torch.int64), (), way).entropy
    assert (entropy >= -1e-6).all() and (entropy <= math.log(vocab) + 1e-6).all()
    if kind == "constant":
        torch.testing.assert_close(entropy, torch.full((7,), math.log(vocab)))


@pytest.mark.parametrize("cut", [1, 4096, 7000])
def test_two_half_rows_merge_to_the_statistics_of_the_whole(way, cut):
    z, e = make_logits("normal", 1, 9001, seed=5), 2.5
    left, right, whole = (
        score(part.contiguous(), torch.zeros(1, dtype=torch.int64), (e,), way) for part in (z[:, :cut], z[:, cut:], z)
    )
    lse = torch.tensor([z[0, 0] - left.logp[0], z[0, cut] - right.logp[0]], dtype=torch.float64)
    log_w = lse - lse.logsumexp(0)
    entropy = torch.stack([left.entropy[0], right.entropy[0]]).double()
    logz = torch.stack([left.logz[0, 0], right.logz[0, 0]]).double()
    assert abs(whole.entropy[0] - (log_w.exp() * (entropy - log_w)).sum()) < ATOL
    assert abs(whole.logz[0, 0] - (logz + e * log_w).logsumexp(0)) < ATOL
    assert abs(whole.logp[0] - (z[0, 0] - lse.logsumexp(0))) < ATOL


def test_shifting_the_logits_changes_nothing_but_rounding(way):
    case = make_case("normal", 3, 5001, draws=50, alpha=4.0)
    moved = sample(case._replace(logits=case.logits + 4096.0), way)
    for mine, other in zip(moved, sample(case._replace(logits=(case.logits + 4096.0) - 4096.0), way), strict=True):
        assert torch.equal(mine, other) if mine.dtype == torch.int64 else (mine - other).abs().max() < 1e-5


def test_drawn_token_has_the_logp_of_score_tokens(way):
    case = make_case("masked_blocks", rows=3, vocab=9001, draws=20, alpha=1.5)
    drawn = sample(case, way)
    scored = score(case.logits[case.rows], drawn.token, (1.0, 4.0), way)
    assert torch.equal(drawn.logp, scored.logp)
    assert torch.equal(drawn.logz[case.rows], scored.logz) and torch.equal(drawn.entropy[case.rows], scored.entropy)


def test_masked_token_scores_minus_infinity(way):
    z = make_logits("normal", 2, 300)
    z[1, 17] = -torch.inf
    scores = score(z, torch.tensor([17, 17]), (4.0,), way)
    assert scores.logp[0].isfinite() and scores.logp[1] == -torch.inf
    assert scores.status.tolist() == [Status.OK, Status.OK] and scores.entropy.isfinite().all()


# Reproducibility


@pytest.mark.parametrize("vocab", [5, 300, 9001, 49152])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_at_any_stride(way, vocab):
    case = make_case("normal", 7, vocab, alpha=1.5)
    whole = sample(case, way)
    wide = torch.full((14, vocab + 3), torch.nan)
    wide[::2, 3:] = case.logits  # rows neither adjacent nor aligned
    assert_same_bits(whole, sample(case._replace(logits=wide[::2, 3:]), way))
    for row in (0, 4, 6):
        alone = case._replace(
            logits=case.logits[row : row + 1],
            alpha=case.alpha[:1],
            rows=torch.zeros(1, dtype=torch.int64),
            keys=case.keys[row : row + 1],
            positions=case.positions[row : row + 1],
        )
        assert_same_bits(sample(alone, way), [x[row : row + 1] for x in whole])


@pytest.mark.parametrize("rows, vocab", [(1, 151936), (3, 49152), (40, 4097), (700, 130)])
@pytest.mark.parametrize("isa", instruction_sets()[-1:])
def test_bits_do_not_depend_on_the_number_of_threads(threads, isa, rows, vocab):
    way, case = Way("cpu", "cpu", isa), make_case("model", rows, vocab, draws=50, alpha=4.0)
    threads(1)
    alone = sample(case, way)
    for n in (2, 5):
        threads(n)
        assert_same_bits(alone, sample(case, way))


def test_an_exponent_gives_the_same_bits_whatever_else_is_asked_for(way):
    many = (4.0, 1.0, 1.5, 2.0, 0.3, 7.0, 8.0, 16.0, 5.5, 9.0, 2.5)
    z, tokens = make_logits("normal", 3, 9001), torch.zeros(3, dtype=torch.int64)
    together = score(z, tokens, many, way)
    for i, e in enumerate(many):
        alone = score(z, tokens, (e,), way)
        assert torch.equal(alone.logz[:, 0], together.logz[:, i])
        assert torch.equal(alone.entropy, together.entropy)


def test_the_exponents_do_not_change_the_draws(way):
    case = make_case("normal", 3, 9001, draws=200, alpha=1.5)
    drawn = sample(case, way)
    assert torch.equal(drawn.token, sample(case._replace(exponents=torch.empty(0)), way).token)
    assert torch.equal(drawn.token, sample(case._replace(exponents=torch.tensor([3.0, 1.5])), way).token)


def test_draws_of_one_row_are_those_of_as_many_equal_rows(way):
    case = make_case("normal", 1, 9001, draws=60, alpha=1.5)
    copies = case._replace(
        logits=case.logits.expand(60, 9001), alpha=case.alpha.expand(60), rows=torch.arange(60), exclude=None
    )
    one, many = sample(case, way), sample(copies, way)
    assert torch.equal(one.token, many.token) and torch.equal(one.logp, many.logp)
    assert len(one.token.unique()) > 30


def test_the_order_of_draws_does_not_matter(way):
    case = make_case("normal", 5, 9001, draws=80, alpha=1.5)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    shuffled = case._replace(rows=case.rows[order], keys=case.keys[order], positions=case.positions[order])
    assert torch.equal(sample(case, way).token[order], sample(shuffled, way).token)


def test_only_the_low_32_bits_of_a_position_count(way):
    case = make_case("normal", 4, 500, draws=50)
    assert torch.equal(sample(case, way).token, sample(case._replace(positions=case.positions + (7 << 32)), way).token)
