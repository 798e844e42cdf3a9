"""The Triton backend on a GPU, through the façade: accuracy, bits that depend on the row alone, CUDA graphs."""

import pytest
import torch
from fastpower.kernels.reference.paged_attention import paged_attention as exact_attention

from fastpower.kernels import append_kv, backends, copy_pages, paged_attention, resample, sample_tokens, score_tokens
from tests.kernels.goodness import g_test
from tests.kernels.paging_inputs import Case as PagedCase
from tests.kernels.paging_inputs import make_case as make_paged
from tests.kernels.sampling_inputs import KINDS, make_case, many_draws

REASON = backends()["triton"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or REASON is not None, reason=f"backend 'triton': {REASON}"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ATOL, ULP = 2e-5, 2.0**-23


def to_gpu(case):
    return type(case)(*(None if x is None else x.cuda() for x in case))


def bits(result):
    return [x.view(torch.int32) if x.dtype == torch.float32 else x for x in result]


def assert_same_bits(a, b):
    assert all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [2, 127, 4097, 151936])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_and_draws_are_those_of_the_reference(kind, vocab, dtype):
    case = make_case(kind, rows=5, vocab=vocab, draws=64, alpha=1.7, exponents=(1.0, 1.7, 4.0), dtype=dtype)
    got, expected = sample_tokens(*to_gpu(case), backend="triton"), sample_tokens(*case, backend="reference")
    assert torch.equal(got.status.cpu(), expected.status)
    for name in ("logz", "entropy"):
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(expected, name), atol=ATOL, rtol=ULP)
    same = got.token.cpu() == expected.token
    assert same.float().mean() >= 0.98  # rounding at the edges of bins
    torch.testing.assert_close(got.logp.cpu()[same], expected.logp[same], atol=ATOL, rtol=ULP)


@pytest.mark.parametrize("excluded", [None, 2])
def test_draws_follow_the_power_law(excluded):
    """G-test, with a token of probability 5e-6."""
    q = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.049895, 1e-4, 5e-6], dtype=torch.float64)
    places = torch.tensor([0, 17, 4000, 4095, 4096, 4500, 4999])
    z = torch.full((5000,), -torch.inf)
    z[places] = q.log().float() / 2
    if excluded is not None:
        q[excluded] = 0
    case = many_draws(z, 4_000_000, 2.0, None if excluded is None else int(places[excluded]))
    token = sample_tokens(*to_gpu(case), backend="triton").token.cpu()
    counts = (token[:, None] == places).sum(0)
    assert counts.sum() == len(token) and g_test(counts, q / q.sum()) > 1e-4


def test_a_row_has_the_same_bits_at_any_stride_alignment_and_place_in_the_batch():
    case = to_gpu(make_case("model", rows=7, vocab=50257, alpha=1.5, dtype=torch.bfloat16))
    batch = sample_tokens(*case, backend="triton")
    for i in (0, 3, 6):
        for offset in (0, 1, 13):
            padded = torch.full((2, 50400), torch.nan, dtype=torch.bfloat16, device="cuda")
            padded[1, offset : offset + 50257] = case.logits[i]
            alone = case._replace(
                logits=padded[1:, offset : offset + 50257],
                alpha=case.alpha[i : i + 1],
                rows=torch.zeros(1, dtype=torch.int64, device="cuda"),
                keys=case.keys[i : i + 1],
                positions=case.positions[i : i + 1],
            )
            assert_same_bits(sample_tokens(*alone, backend="triton"), [x[i : i + 1] for x in batch])


def test_scores_have_the_bits_of_draws():
    case = to_gpu(make_case("masked_blocks", rows=3, vocab=9001, draws=20, alpha=1.5))
    drawn = sample_tokens(*case, backend="triton")
    scored = score_tokens(case.logits[case.rows], drawn.token, case.exponents, backend="triton")
    assert torch.equal(drawn.logp, scored.logp) and torch.equal(drawn.entropy[case.rows], scored.entropy)


def error(out, case, **options):
    doubled = PagedCase(*(x.double() if x.is_floating_point() else x for x in case))
    return (out.cpu().double() - exact_attention(*doubled, **options)).abs().max()


MIXED = dict(lengths=[1, 63, 200, 64, 2333, 65, 130], queries=[1, 5, 1, 1, 97, 65, 1])


@pytest.mark.parametrize("options", [{}, {"window": 100}, {"softcap": 5.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_attention_error_is_within_the_rounding_of_the_dtype(head_dim, dtype, options):
    """Of values of unit variance: p is rounded to the dtype before p·v, and the output afterwards."""
    case = make_paged(**MIXED, head_dim=head_dim, dtype=dtype)
    out = paged_attention(*to_gpu(case), **options, backend="triton")
    assert error(out, case, **options) <= {torch.float32: 4e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sharing_batching_and_chunking_do_not_change_a_bit(dtype):
    case = to_gpu(make_paged([600, 1030, 777], queries=[1, 40, 1], shared_tokens=528, dtype=dtype))
    out = paged_attention(*case, backend="triton")
    shared = tuple(torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 3], [33]))
    assert torch.equal(paged_attention(*case, shared=shared, backend="triton"), out)
    for row, length in ((1, 991), (40, 1030)):
        alone = case._replace(
            query=case.query[row : row + 1],
            page_table=case.page_table[1:2],
            query_starts=torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
            lengths=torch.tensor([length], dtype=torch.int32, device="cuda"),
        )
        assert torch.equal(paged_attention(*alone, backend="triton")[0], out[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_page_operators_write_what_the_reference_writes(dtype):
    g = torch.Generator().manual_seed(1)
    storage = torch.randn(3, 50, 2, 16, 5, 80, generator=g).to(dtype)
    slots = torch.randperm(800, generator=g)[:333]
    slots[7] = -1
    key, value = torch.randn(2, 333, 5, 80, generator=g).to(dtype)
    order = torch.randperm(50, generator=g)
    plan = order[:20], order[20:40], torch.randint(0, 17, (20,), generator=g)
    on_gpu = storage.cuda()
    for device, cache, backend in (("cpu", storage, "reference"), ("cuda", on_gpu, "triton")):
        k_cache, v_cache = cache[:, :, 0], cache[:, :, 1]
        append_kv(key.to(device), value.to(device), k_cache[1], v_cache[1], slots.to(device), backend=backend)
        copy_pages(k_cache, v_cache, *(x.to(device) for x in plan), backend=backend)
    assert torch.equal(on_gpu.cpu(), storage)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
def test_ancestors_are_those_of_the_reference(scheme):
    g = torch.Generator().manual_seed(2)
    weights = 3 * torch.randn(5, 3001, dtype=torch.float64, generator=g)
    weights[1, ::3] = -torch.inf
    weights[2] = -torch.inf
    uniforms = torch.rand(5, 1 if scheme == "systematic" else 3001, dtype=torch.float64, generator=g)
    got = resample(weights.cuda(), uniforms.cuda(), scheme=scheme, backend="triton")
    expected = resample(weights, uniforms, scheme=scheme, backend="reference")
    assert torch.equal(got.index.cpu(), expected.index)
    torch.testing.assert_close(got.ess.cpu(), expected.ess, rtol=1e-12, atol=0)


def test_a_decode_step_with_its_page_books_replays_in_a_cuda_graph():
    """Reserve, copy, append, attend, draw: captured once, replayed 40 times, against the same steps taken eagerly."""
    from fastpower.kernels.triton.page_books import assign, page_books, reserve

    rows, page, heads, dim, vocab = 4, 16, 2, 64, 5003
    g = torch.Generator().manual_seed(3)
    projection = torch.randn(dim * heads, vocab, generator=g).cuda()
    embedding = torch.randn(vocab, heads * dim, generator=g).cuda()
    alpha, exponents = torch.full((rows,), 2.0).cuda(), torch.tensor([2.0]).cuda()
    keys, each = torch.arange(rows).cuda(), torch.arange(rows).cuda()
    starts, every = torch.arange(rows + 1, dtype=torch.int32).cuda(), torch.arange(rows, dtype=torch.int32).cuda()

    def run(replayed):
        books = page_books(rows, 8, 40, "cuda")
        k_cache, v_cache = torch.zeros(2, 1, 40, page, heads, dim, device="cuda")
        token, out = torch.tensor([1, 2, 3, 4], device="cuda"), []

        def step():
            plan = reserve(books, every, page)
            copy_pages(k_cache, v_cache, plan.source, plan.target, plan.tokens, backend="triton")
            x = embedding[token].view(rows, heads, dim)
            append_kv(x, x, k_cache[0], v_cache[0], plan.slots, backend="triton")
            cache = k_cache[0], v_cache[0], books.page_table
            mixed = paged_attention(x, *cache, starts, books.lengths, backend="triton")
            logits = (mixed + x).flatten(1) @ projection
            drawn = sample_tokens(logits, alpha, exponents, each, keys, books.lengths.long(), backend="triton")
            token.copy_(drawn.token)

        for _ in range(3):
            step()
            out.append(token.clone())
        source = torch.tensor([0, 0, 2, 2], dtype=torch.int32, device="cuda")
        assign(books, source, every, torch.tensor([3, 2, 3, 1], dtype=torch.int32, device="cuda"), page)
        if replayed:
            saved = [x.clone() for x in (*books, k_cache, v_cache, token)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            for x, before in zip((*books, k_cache, v_cache, token), saved, strict=True):
                x.copy_(before)
        for _ in range(40):
            graph.replay() if replayed else step()
            out.append(token.clone())
        return torch.stack(out), [x.clone() for x in (books.lengths, books.references)]

    eager, captured = run(False), run(True)
    assert torch.equal(eager[0], captured[0])
    assert eager[1][0].tolist() == [43, 42, 43, 41] and torch.equal(eager[1][0], captured[1][0])
    assert torch.equal(eager[1][1].sort().values, captured[1][1].sort().values)


def test_operators_compile_without_a_graph_break():
    case, paged = to_gpu(make_case("model", rows=3, vocab=5003)), to_gpu(make_paged([20, 70], [1, 3]))

    def both(*tensors):
        drawn = sample_tokens(*tensors[:6], backend="triton")
        return drawn.token, drawn.logz, paged_attention(*tensors[6:], backend="triton")

    tensors = (*case[:6], *paged)
    for mine, right in zip(torch.compile(both, fullgraph=True)(*tensors), both(*tensors), strict=True):
        assert torch.equal(mine, right)
