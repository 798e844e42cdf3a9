"""The law of the draws of ``sample_tokens``: exact frequencies (G-tests), ``exclude``, agreement with Gumbel-max."""

import pytest
import torch

from fastpower.kernels import Status
from tests.kernels.backends_live import Way, sample
from tests.kernels.goodness import g_test, same_law
from tests.kernels.sampling_inputs import make_case, make_logits, many_draws

P_LEAST = 1e-4  # seeds are fixed: a p-value below is a defect
REFERENCE = Way("reference", "cpu")


def law(z, alpha, exclude=None):
    z = z.double().clone()
    if exclude is not None:
        z[exclude] = -torch.inf
    return torch.softmax(alpha * z, 0)


def counts(case, way, vocab):
    drawn = sample(case, way)
    assert drawn.status.tolist() == [Status.OK]
    return torch.bincount(drawn.token, minlength=vocab)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("vocab", [2, 61])
def test_frequencies_follow_the_power_law(way, vocab, alpha):
    z = make_logits("normal", 1, vocab)[0]
    assert g_test(counts(many_draws(z, 50_000, alpha, seed=2), way, vocab), law(z, alpha)) > P_LEAST


@pytest.mark.parametrize("kind, vocab", [("normal", 4097), ("masked_blocks", 13_003)])
def test_frequencies_follow_the_law_across_blocks(way, kind, vocab):
    z = make_logits(kind, 1, vocab, seed=4)[0]
    draws = 2_000 if way.backend == "reference" else 60_000
    cells = torch.arange(vocab) // 97
    n = counts(many_draws(z, draws, 1.5, seed=1), way, vocab)
    p = law(z, 1.5)
    assert n[z == -torch.inf].sum() == 0
    pooled = [torch.bincount(cells, x.double()) for x in (n, p)]
    assert g_test(*pooled) > P_LEAST
    halves = [torch.bincount(torch.arange(vocab) % 101, x.double()) for x in (n, p)]
    assert g_test(*halves) > P_LEAST


def test_the_tail_of_one_in_a_million_has_its_frequency(fast):
    """60 tokens of probability 1e-6 each, spread over the row: 4 million draws expect 4 of every one."""
    vocab, draws = 9001, 4_000_000
    z = torch.full((vocab,), -torch.inf)
    tail = torch.arange(30, vocab, 150)
    z[tail] = torch.log(torch.tensor(1e-6))
    z[4100] = torch.log(torch.tensor(1 - 60e-6))
    n = counts(many_draws(z, draws, seed=9), fast, vocab)
    p = law(z, 1.0)
    assert g_test(n[tail], p[tail] / p[tail].sum()) > P_LEAST
    assert g_test(torch.stack([n[tail].sum(), n.sum() - n[tail].sum()]), [p[tail].sum(), 1 - p[tail].sum()]) > P_LEAST


@pytest.mark.parametrize("alpha", [1.0, 4.0])
@pytest.mark.parametrize("mass", [0.3, 1 - 1e-9, "1 - 1e-40"])
@pytest.mark.parametrize("vocab, place", [(61, 17), (9001, 5000)])
def test_without_the_excluded_token_the_rest_keeps_its_law(way, vocab, place, mass, alpha):
    """However little is left: at 1 - 1e-40 (to the power alpha!) the rest is below the smallest float32."""
    z = make_logits("normal", 1, vocab, seed=8)[0]
    rest = law(z, 1.0, place).log()
    z = rest.float()
    z[place] = {0.3: -0.84, 1 - 1e-9: 20.72, "1 - 1e-40": 92.1}[mass]
    draws = 2_000 if way.backend == "reference" else 20_000
    n = counts(many_draws(z, draws, alpha, exclude=place, seed=3), way, vocab)
    assert n[place] == 0
    cells = torch.arange(vocab) // (1 if vocab < 100 else 90)
    assert g_test(*(torch.bincount(cells, x.double()) for x in (n, law(z, alpha, place)))) > P_LEAST


def test_excluding_gives_the_tokens_of_the_reference_and_of_a_masked_row(fast):
    case = make_case("model", rows=5, vocab=9001, draws=300, alpha=1.5)
    first = sample(case, fast)
    case = case._replace(exclude=torch.where(torch.arange(300) % 3 == 0, -1, first.token))
    value = sample(case, fast)
    assert torch.equal(value.token, sample(case, REFERENCE).token)
    assert torch.equal(value.logz, first.logz) and torch.equal(value.entropy, first.entropy)
    masked = case.logits[case.rows].clone()
    some = case.exclude >= 0
    masked[some.nonzero()[:, 0], case.exclude[some]] = -torch.inf
    alone = case._replace(logits=masked, alpha=case.alpha[case.rows], rows=torch.arange(300), exclude=None)
    assert torch.equal(value.token, sample(alone, fast).token)


def test_excluding_a_masked_token_changes_nothing(way):
    case = make_case("masked_blocks", rows=3, vocab=9001, draws=60)
    exclude = (case.logits[case.rows] == -torch.inf).float().argmax(1)
    assert torch.equal(sample(case, way).token, sample(case._replace(exclude=exclude), way).token)


def test_tokens_are_those_of_the_reference_at_every_uniform(fast):
    """Many draws hit every bin; only a draw within rounding of a bin's edge may differ."""
    case = make_case("normal", rows=2, vocab=4500, draws=6_000, alpha=1.5)
    assert (sample(case, fast).token != sample(case, REFERENCE).token).sum() <= 2


def test_gumbel_max_draws_from_the_same_law(way):
    """The other classical way to draw, with other random numbers: argmax of alpha z + Gumbel noise."""
    vocab, draws, alpha = 40, 60_000, 1.5
    z = make_logits("normal", 1, vocab, seed=6)[0]
    g = torch.Generator().manual_seed(5)
    noise = -torch.log(-torch.log(torch.rand(draws, vocab, generator=g, dtype=torch.float64)))
    theirs = torch.bincount((alpha * z + noise).argmax(1), minlength=vocab)
    assert same_law(theirs, counts(many_draws(z, draws, alpha, seed=7), way, vocab)) > P_LEAST


def test_draws_of_different_keys_and_positions_are_independent(way):
    """Pairs of draws that differ in the key, in the position, or in both fill the product law."""
    vocab, n = 5, 30_000
    z = make_logits("normal", 1, vocab, seed=6)[0]
    case = many_draws(z, n, seed=7)
    p = law(z, 1.0)
    first = sample(case, way).token
    for keys, positions in ((0, 1), (1, 0), (1 << 32, 0), (5, 9)):
        second = sample(case._replace(keys=case.keys + keys, positions=case.positions + positions), way).token
        pairs = torch.bincount(first * vocab + second, minlength=vocab * vocab)
        assert g_test(pairs, torch.outer(p, p)) > P_LEAST


# What cannot be drawn


def test_rows_without_a_law_say_so_and_draw_nothing(way):
    for vocab in (3, 70, 9001):
        case = make_case("normal", rows=8, vocab=vocab, exponents=(1.0, 4.0, 1.5))
        z = case.logits
        z[1] = -torch.inf
        z[2, vocab // 2] = torch.nan
        z[3, vocab - 1] = torch.inf
        z[4], z[4, 0] = -torch.inf, torch.nan
        z[5] = torch.nan
        z[6] = torch.inf
        drawn = sample(case, way)
        scored = sample(case._replace(rows=case.rows[:0], keys=case.keys[:0], positions=case.positions[:0]), way)
        nan, masked = Status.NAN, Status.MASKED
        for result in (drawn, scored):
            assert result.status.tolist() == [0, masked, nan, nan, nan, nan, nan, 0]
            assert result.logz[1:7].isnan().all() and result.entropy[1:7].isnan().all()
            assert result.logz[[0, 7]].isfinite().all() and result.entropy[[0, 7]].isfinite().all()
        assert drawn.token[1:7].tolist() == [-1] * 6 and drawn.logp[1:7].isnan().all()
        assert (drawn.token[[0, 7]] >= 0).all() and drawn.logp[[0, 7]].isfinite().all()


def test_a_draw_with_nothing_left_is_exhausted_and_others_of_the_row_are_not(way):
    for vocab in (1, 50, 9001):
        z = torch.full((2, vocab), -torch.inf)
        z[:, vocab // 2] = 1.0
        case = make_case("normal", rows=2, vocab=vocab)._replace(
            logits=z,
            rows=torch.tensor([1, 1, 0]),
            keys=torch.arange(3),
            positions=torch.arange(3),
            exclude=torch.tensor([vocab // 2, -1, -1]),
        )
        drawn = sample(case, way)
        assert drawn.token.tolist() == [-1, vocab // 2, vocab // 2]
        assert drawn.status.tolist() == [Status.OK, Status.EXHAUSTED]
        assert drawn.logp[0].isnan() and drawn.logp[1:].tolist() == [0.0, 0.0]
        assert drawn.logz.tolist() == [[0.0, 0.0]] * 2 and drawn.entropy.tolist() == [0.0, 0.0]


def test_no_draws_no_rows_and_no_exponents_give_empty_results(way):
    case = make_case("normal", rows=3, vocab=70, exponents=())
    none = case._replace(rows=case.rows[:0], keys=case.keys[:0], positions=case.positions[:0])
    drawn = sample(none, way)
    assert drawn.token.shape == drawn.logp.shape == (0,) and drawn.logz.shape == (3, 0)
    assert drawn.entropy.isfinite().all()
    empty = sample(none._replace(logits=case.logits[:0], alpha=case.alpha[:0]), way)
    assert empty.token.shape == (0,) and empty.logz.shape == (0, 0) and empty.status.shape == (0,)
