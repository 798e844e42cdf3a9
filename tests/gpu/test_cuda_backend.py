"""The CUDA C++ backend on a GPU, through the façade, against the float64 reference on the CPU."""

import pytest
import torch
from scipy import stats

from fastpower.kernels import append_kv, backends, copy_pages, paged_attention, sample_tokens, score_tokens
from tests.kernels import paging_inputs
from tests.kernels.sampling_inputs import KINDS, Case, make_case

REASON = backends()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"backend 'cuda': {REASON}")]


def to_gpu(case):
    return case.to("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("vocab", [2, 127, 4097, 151936])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_and_draws_are_those_of_the_reference(kind, vocab, dtype):
    if kind == "huge" and dtype is torch.float16:
        pytest.skip("1e4 is no logit for float16")
    case = make_case(kind, rows=5, vocab=vocab, draws=64, alpha=1.7, exponents=(1.0, 1.7, 4.0), dtype=dtype)
    got = sample_tokens(*to_gpu(case), backend="cuda")
    expected = sample_tokens(*case, backend="reference")
    eager = torch.log_softmax(case.logits.cuda().float(), 1)
    for e, exponent in enumerate(case.exponents):
        truth = expected.logz[:, e].double()
        theirs = torch.logsumexp(exponent.cuda() * eager, 1).cpu().double()
        assert (got.logz[:, e].cpu() - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 2e-6
    torch.testing.assert_close(got.entropy.cpu(), expected.entropy, rtol=2e-6, atol=2e-6)
    assert torch.equal(got.status.cpu(), expected.status)
    same = got.token.cpu() == expected.token
    assert same.float().mean() >= 0.98  # rounding at the edges of bins
    torch.testing.assert_close(got.logp.cpu()[same], expected.logp[same], rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("excluded", [None, 3])
def test_draws_follow_the_power_law(excluded):
    """G-test, with a token of probability 1e-4 and one of 5e-6."""
    draws, alpha = 4_000_000, 2.0
    q = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.049895, 1e-4, 5e-6], dtype=torch.float64)
    weights = q.log() / alpha
    if excluded is not None:
        q[excluded] = 0
    q = (q / q.sum()).numpy()
    logits = torch.full((1, 5000), -torch.inf)
    places = torch.tensor([0, 17, 4000, 4095, 4096, 4500, 4999])
    logits[0, places] = weights.float()
    case = Case(
        logits,
        torch.tensor([alpha]),
        torch.tensor([2.0]),
        torch.zeros(draws, dtype=torch.int64),
        torch.full((draws,), 1234567),
        torch.arange(draws),
        None if excluded is None else torch.full((draws,), int(places[excluded])),
    )
    token = sample_tokens(*to_gpu(case), backend="cuda").token.cpu()
    counts = torch.tensor([(token == place).sum() for place in places]).numpy()
    assert counts.sum() == draws
    kept = q > 0
    assert counts[~kept].sum() == 0
    assert stats.power_divergence(counts[kept], q[kept] * draws, lambda_="log-likelihood").pvalue > 1e-4


def test_bits_of_a_row_depend_on_that_row_alone():
    case = to_gpu(make_case("model", rows=9, vocab=50257, alpha=2.0, dtype=torch.bfloat16))
    batch = sample_tokens(*case, backend="cuda")
    for row in range(9):
        draw = slice(row, row + 1)
        alone = sample_tokens(
            case.logits[draw].clone(),
            case.alpha[draw],
            case.exponents,
            torch.zeros_like(case.rows[draw]),
            case.keys[draw],
            case.positions[draw],
            backend="cuda",
        )
        for together, single in zip(batch, alone, strict=True):
            assert torch.equal(together[draw], single)


def test_score_tokens_gives_the_bits_of_sample_tokens():
    case = to_gpu(make_case("masked_blocks", rows=3, vocab=9001, draws=20, alpha=1.5))
    drawn = sample_tokens(*case, backend="cuda")
    scored = score_tokens(case.logits[case.rows], drawn.token, case.exponents, backend="cuda")
    assert torch.equal(drawn.logp, scored.logp)
    assert torch.equal(drawn.entropy[case.rows], scored.entropy)


def test_launches_go_to_the_current_stream_and_into_graphs():
    case = to_gpu(make_case("model", rows=4, vocab=32003, alpha=4.0))
    expected = sample_tokens(*case, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sample_tokens(*case, backend="cuda")
    case.positions.add_(1)
    graph.replay()
    torch.cuda.synchronize()
    moved = sample_tokens(*case, backend="cuda")
    assert torch.equal(captured.token, moved.token)
    assert torch.equal(captured.logz, expected.logz)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", [6, 128])
def test_page_operators_write_what_the_reference_writes(head_dim, dtype):
    layers, pages, page_size, heads = 3, 50, 16, 5
    g = torch.Generator().manual_seed(1)
    storage = torch.randn(layers, pages, 2, page_size, heads, head_dim, generator=g).to(dtype)
    slots = torch.randperm(pages * page_size, generator=g)[:333]
    slots[7] = -1
    key, value = torch.randn(2, 333, heads, head_dim, generator=g).to(dtype)
    order = torch.randperm(pages, generator=g)
    source, target = order[:20], order[20:40]
    tokens = torch.randint(0, page_size + 1, (20,), generator=g)
    on_gpu = storage.cuda()
    for device, cache, backend in (("cpu", storage, "reference"), ("cuda", on_gpu, "cuda")):
        k_cache, v_cache = cache[:, :, 0], cache[:, :, 1]
        append_kv(key.to(device), value.to(device), k_cache[1], v_cache[1], slots.to(device), backend=backend)
        copy_pages(k_cache, v_cache, *(x.to(device) for x in (source, target, tokens)), backend=backend)
    assert torch.equal(on_gpu.cpu(), storage)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("options", [{}, {"window": 100}, {"softcap": 5.0}], ids=str)
def test_attention_is_that_of_the_reference(options, head_dim, dtype):
    case = paging_inputs.make_case(
        [1, 300, 40, 2000], [1, 1, 33, 1], q_heads=8, kv_heads=2, head_dim=head_dim, dtype=dtype
    )
    expected = paged_attention(*case, backend="reference", **options)
    got = paged_attention(*(x.cuda() for x in case), backend="cuda", **options).cpu()
    rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol / 8)


def test_attention_of_a_row_has_the_same_bits_in_any_batch():
    case = paging_inputs.make_case([900, 300], [1, 1], q_heads=8, kv_heads=2, dtype=torch.bfloat16)
    few = paged_attention(*(x.cuda() for x in case), backend="cuda")
    many = case._replace(
        query=case.query.repeat(300, 1, 1),
        page_table=case.page_table.repeat(300, 1),
        query_starts=torch.arange(601, dtype=torch.int32),
        lengths=case.lengths.repeat(300),
    )
    assert torch.equal(paged_attention(*(x.cuda() for x in many), backend="cuda"), few.repeat(300, 1, 1))


def test_index_out_of_range_is_left_out_and_touches_nothing():
    case = to_gpu(make_case("normal", rows=2, vocab=129, draws=3))
    wrong = case._replace(rows=torch.tensor([-1, 2, 0]).cuda())
    assert sample_tokens(*wrong, backend="cuda").token.tolist()[:2] == [-1, -1]
    caches = [torch.zeros(2, 3, 4, 1, 8).cuda() for _ in range(2)]
    new = [torch.ones(2, 1, 8).cuda() for _ in range(2)]
    append_kv(*new, caches[0][0], caches[1][0], torch.tensor([12, -5]).cuda(), backend="cuda")
    pages = torch.tensor([3]).cuda(), torch.tensor([0]).cuda(), torch.tensor([4]).cuda()
    copy_pages(*caches, *pages, backend="cuda")
    torch.cuda.synchronize()
    assert not any(cache.any() for cache in caches)
