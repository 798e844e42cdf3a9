"""``paged_attention``: accuracy, what a query sees, bitwise invariance of the C++ kernels, errors."""

import itertools

import pytest
import torch
import torch.nn.functional as nnf
from fastpower.kernels.reference.paged_attention import paged_attention as reference

from fastpower import _C
from fastpower.kernels import paged_attention
from tests.kernels.paging_inputs import Case, gathered, make_case, visible

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIXED = {"lengths": [1, 63, 200, 64, 333, 65, 130], "queries": [1, 5, 1, 1, 97, 65, 1]}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """torch.empty gives NaN, so that an element that a kernel forgets cannot pass."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def doubled(case):
    """The case in float64, for the reference."""
    return Case(*(x.double() if x.is_floating_point() else x for x in case))


def eager(case, scale=None, window=0, softcap=0.0):
    """PyTorch in the case's own dtype on gathered K/V: what the kernel's error is measured by."""
    rows = []
    for s, new in enumerate(case.query_starts.diff().tolist()):
        q, k, v = gathered(case, s)
        mask = visible(new, k.shape[1], window)
        group = q.shape[0] // k.shape[0]
        if softcap:
            k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
            score = (q @ k.transpose(1, 2)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
            score = softcap * torch.tanh(score / softcap)
            out = score.masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype) @ v
        else:
            batch = (x.unsqueeze(0) for x in (q, k, v))
            out = nnf.scaled_dot_product_attention(*batch, attn_mask=mask, scale=scale, enable_gqa=True)[0]
        rows.append(out.transpose(0, 1))
    return torch.cat(rows)


def assert_error_at_most_doubles(case, **options):
    exact = reference(*doubled(case), **options)
    out = paged_attention(*case, **options, backend="cpu").double()
    by_torch = (eager(case, **options).double() - exact).abs().max()
    assert (out - exact).abs().max() <= 2 * by_torch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_error_is_at_most_twice_that_of_torch(isa, dtype, head_dim):
    assert_error_at_most_doubles(make_case(**MIXED, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"window": 50}, {"softcap": 2.5}, {"scale": 0.4}, {"window": 3, "softcap": 20.0}])
def test_options_keep_that_accuracy(isa, dtype, options):
    assert_error_at_most_doubles(make_case(**MIXED, head_dim=40, dtype=dtype), **options)


@pytest.mark.parametrize(
    "better, dtype", [("avx512_bf16", torch.bfloat16), ("amx", torch.float32), ("amx", torch.float16)], ids=str
)
def test_instruction_sets_without_a_variant_take_the_next_lower_one(better, dtype):
    case, before = make_case(**MIXED, dtype=dtype), _C.isa()
    try:
        _C.set_isa(better)
        out = paged_attention(*case)
        _C.set_isa("avx512")
        assert torch.equal(paged_attention(*case), out)
    except ValueError:
        pytest.skip(f"this machine has no {better}")
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("q_heads, kv_heads", [(1, 1), (4, 4), (7, 1), (10, 2), (15, 3), (128, 1)])
def test_every_grouping_of_heads(q_heads, kv_heads):
    assert_error_at_most_doubles(make_case(**MIXED, q_heads=q_heads, kv_heads=kv_heads, head_dim=24))


@pytest.mark.parametrize("page_size", [1, 16, 48, 256])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_page_size_does_not_change_a_bit(backend, page_size, dtype):
    out = paged_attention(*make_case(**MIXED, page_size=page_size, dtype=dtype), backend=backend)
    assert torch.equal(out, paged_attention(*make_case(**MIXED, page_size=64, dtype=dtype), backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_scores_of_ten_thousand_neither_overflow_nor_vanish(backend, softcap):
    """With scores this far apart a row is the value of its best key (or, capped, of the best keys' mean)."""
    case = make_case([333], [20])
    case.query.mul_(1e4)
    out = paged_attention(*case, softcap=softcap, backend=backend)
    torch.testing.assert_close(out, reference(*doubled(case), softcap=softcap).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_window_of_one_returns_the_token_s_own_value(backend):
    case = make_case(**MIXED, q_heads=3)
    out = paged_attention(*case, window=1, backend=backend)
    own = [gathered(case, s)[2][:, -new:].transpose(0, 1) for s, new in enumerate(MIXED["queries"])]
    assert torch.equal(out, torch.cat(own))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [0, 70])
def test_later_and_forgotten_tokens_are_not_touched(isa, window, dtype):
    """Infinities in K/V that a query must not see leave no trace: masked keys are skipped, not multiplied by 0."""
    case = make_case([300], [300], dtype=dtype)
    clean = paged_attention(*case, window=window)
    for position in (150, 151, 299):
        page, offset = case.page_table[0, position // 16], position % 16
        case.k_cache[page, offset], case.v_cache[page, offset] = torch.nan, torch.inf
    out = paged_attention(*case, window=window)
    assert torch.equal(out[:150], clean[:150])
    assert not out[150].isfinite().any()
    if window:
        assert torch.equal(out[151 + window : 299], clean[151 + window : 299])


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequences_without_queries_and_empty_calls(backend):
    case = make_case([5, 70, 9], [1, 0, 2])
    out = paged_attention(*case, backend=backend)
    alone = make_case([5], [1])
    assert out.shape == (3, 9, 64) and torch.equal(out[:1], paged_attention(*alone, backend=backend))
    empty = case._replace(query=case.query[:0], query_starts=torch.zeros(4, dtype=torch.int32))
    assert paged_attention(*empty, backend=backend).shape == (0, 9, 64)
    nobody = make_case([5], [1])
    nobody = nobody._replace(
        query=nobody.query[:0],
        page_table=nobody.page_table[:0],
        query_starts=torch.zeros(1, dtype=torch.int32),
        lengths=nobody.lengths[:0],
    )
    assert paged_attention(*nobody, backend=backend).shape == (0, 9, 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_query_and_keys_beside_values(backend):
    case = make_case(**MIXED)
    both = torch.stack([case.k_cache, case.v_cache], dim=1)
    wide = torch.cat([case.page_table, case.page_table], dim=1)
    strided = case._replace(
        query=case.query.transpose(0, 1).contiguous().transpose(0, 1),
        k_cache=both[:, 0],
        v_cache=both[:, 1],
        page_table=wide[:, : case.page_table.shape[1]],
    )
    assert torch.equal(paged_attention(*strided, backend=backend), paged_attention(*case, backend=backend))


def chunk(case, begin, end):
    """A case of one sequence, cut to its queries begin … end - 1 as if the tokens from end on were not there yet."""
    before = int(case.lengths[0]) - len(case.query)
    return case._replace(
        query=case.query[begin:end],
        query_starts=torch.tensor([0, end - begin], dtype=torch.int32),
        lengths=torch.tensor([before + end], dtype=torch.int32),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "head_dim, options", [(72, {}), (96, {}), (96, {"window": 90}), (64, {"softcap": 4.0})], ids=str
)
def test_chunked_prefill_and_decode_give_the_same_bits(isa, threads, dtype, head_dim, options):
    threads(2)
    n = 261
    case = make_case([n], [n], head_dim=head_dim, dtype=dtype)
    whole = paged_attention(*case, **options)
    chunks = [0, 1, 18, 82, 83, 150, n]
    for begin, end in itertools.pairwise(chunks):
        assert torch.equal(paged_attention(*chunk(case, begin, end), **options), whole[begin:end])
    for i in [0, 1, 62, 63, 64, 65, 127, 128, 200, n - 1]:
        assert torch.equal(paged_attention(*chunk(case, i, i + 1), **options), whole[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"window": 500}], ids=str)
def test_batch_and_threads_do_not_change_a_bit(isa, threads, dtype, options):
    lengths = [1500, 3, 64, 700]
    queries = [1, 2, 1, 40]
    case = make_case(lengths, queries, dtype=dtype)
    threads(1)
    together = paged_attention(*case, **options).split(queries)
    for n in (1, 2, 3, 7):
        threads(n)
        assert torch.equal(paged_attention(*case, **options), torch.cat(together))
        for s in range(4):
            alone = case._replace(
                query=case.query.split(queries)[s],
                page_table=case.page_table[s : s + 1],
                query_starts=torch.tensor([0, queries[s]], dtype=torch.int32),
                lengths=case.lengths[s : s + 1],
            )
            assert torch.equal(paged_attention(*alone, **options), together[s])


SHARED = {
    "decode": ([530, 529, 700, 531, 900], [1, 1, 1, 1, 1]),
    "short chunks": ([540, 533, 700, 531, 900], [7, 1, 20, 3, 5]),
    "more rows than a tile": ([532 + i for i in range(45)], [1 + i % 3 for i in range(45)]),
    "long chunk": ([600, 900], [60, 64]),
}


@pytest.mark.parametrize("options", [{}, {"window": 450}, {"window": 100}, {"softcap": 4.0}], ids=str)
@pytest.mark.parametrize(
    "kind, dtype", [("decode", torch.bfloat16), ("decode", torch.float16), *((kind, torch.float32) for kind in SHARED)]
)
def test_sharing_does_not_change_a_bit(isa, threads, dtype, kind, options):
    lengths, queries = SHARED[kind]
    case = make_case(lengths, queries, dtype=dtype, shared_tokens=528)  # 33 pages: not a whole number of splits
    threads(2)
    apart = paged_attention(*case, **options)
    assert apart.isfinite().all()
    last = len(lengths)
    for starts, pages in [([0, last], [33]), ([0, last], [5]), ([0, 1, last], [33, 32]), ([0, 2, last], [33, 0])]:
        shared = (torch.tensor(starts, dtype=torch.int32), torch.tensor(pages, dtype=torch.int32))
        for n in (1, 2, 5):
            threads(n)
            assert torch.equal(paged_attention(*case, **options, shared=shared), apart)


def test_shared_run_is_read_for_the_group_and_the_reference_ignores_the_hint():
    case = make_case([40, 50], shared_tokens=32)
    shared = (torch.tensor([0, 2], dtype=torch.int32), torch.tensor([2], dtype=torch.int32))
    out = paged_attention(*case, shared=shared, backend="reference")
    assert torch.equal(out, paged_attention(*case, backend="reference"))


def groups(starts, pages):
    return {"shared": (torch.tensor(starts, dtype=torch.int32), torch.tensor(pages, dtype=torch.int32))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"lengths": [40, 1]}, ValueError, r"lengths\[1\] is 1, less than the sequence's 2 queries"),
        ({"lengths": [40, 65]}, ValueError, r"lengths\[1\] is 65, but page_table has 4 pages of 16 tokens"),
        ({"lengths": [-1, 40]}, ValueError, r"lengths\[0\] is -1"),
        ({"lengths": [40, 64]}, IndexError, r"page_table\[1\]\[3\] is -1, but the cache has pages 0 to 6"),
        ({"query_starts": [0, 1, 2]}, ValueError, "query_starts must go from 0 to the number of queries 3, got 0 to 2"),
        ({"query_starts": [1, 2, 3]}, ValueError, "query_starts must go from 0"),
        ({"query_starts": [0, 4, 3]}, ValueError, r"query_starts must not decrease, query_starts\[2\] does"),
        (groups([0, 2], [3]), ValueError, "group 0 shares 3 pages, but sequence 0 has a query at position 39 inside"),
        (groups([0, 2], [2]), ValueError, "sequences 0 and 1 of group 0 differ in their first 2 page_table entries"),
        (groups([0, 3], [1]), ValueError, "shared starts must not decrease and lie in 0 to 2, got 0 and 3"),
        (groups([0, 2], [9]), IndexError, "shared pages of group 0 is 9"),
        ({"window": -1}, ValueError, "window must be >= 0"),
        ({"softcap": -1.0}, ValueError, r"softcap must be 0 \(none\) or lie"),
        ({"softcap": float("nan")}, ValueError, r"softcap must be 0 \(none\) or lie"),
        ({"scale": float("inf")}, ValueError, "scale must be finite"),
        ({"query": torch.zeros(3, 9, 64, dtype=torch.float64)}, TypeError, "query must be float32"),
        ({"query": torch.zeros(3, 9, 64, dtype=torch.bfloat16)}, TypeError, "k_cache must be bfloat16, got float32"),
        ({"query": torch.zeros(3, 9, 48)}, ValueError, r"k_cache must have shape \(pages, page_size, Hkv, 48\)"),
        ({"query": torch.zeros(3, 8, 64)}, ValueError, "must be a multiple of key/value heads, got 8 and 3"),
        ({"v_cache": torch.zeros(6, 16, 3, 64)}, ValueError, r"v_cache must have shape \(7, 16, 3, 64\)"),
        ({"k_cache": torch.zeros(7, 16, 64, 3).transpose(2, 3)}, ValueError, "k_cache needs contiguous pages"),
        ({"page_table": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "page_table must be int32"),
        ({"page_table": torch.zeros(3, 3, dtype=torch.int32)}, ValueError, r"must have shape \(2, max_pages\)"),
        ({"lengths": torch.zeros(2, dtype=torch.int32, device="meta")}, ValueError, "lengths is on meta"),
    ],
)
def test_bad_input_is_named(backend, change, error, message):
    case = make_case([40, 41], [1, 2])
    assert case.k_cache.shape[0] == 8
    case = case._replace(k_cache=case.k_cache[:7], v_cache=case.v_cache[:7])
    arguments = case._asdict() | {"page_table": torch.tensor([[0, 1, 2, -1], [3, 4, 5, -1]], dtype=torch.int32)}
    change = {k: torch.tensor(v, dtype=torch.int32) if isinstance(v, list) else v for k, v in change.items()}
    with pytest.raises(error, match=message):
        paged_attention(**{**arguments, **change}, backend=backend)


@pytest.mark.parametrize("head_dim", [12, 264])
def test_head_dim_that_no_kernel_has_is_named(head_dim):
    case = make_case([5], head_dim=head_dim)
    with pytest.raises(ValueError, match=f"head_dim must be a multiple of 8, at most 256, got {head_dim}"):
        paged_attention(*case)


def test_operator_passes_opcheck():
    case = make_case([20, 70], [1, 3], shared_tokens=16)
    shared = (torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1], dtype=torch.int32))
    for starts, pages in [(None, None), shared]:
        torch.library.opcheck(
            torch.ops.fastpower.paged_attention.default, (*case, 0.125, 0, 0.0, starts, pages, None, "cpu")
        )


def test_compiles_without_graph_break():
    torch._dynamo.reset()
    case = make_case([20, 70], [1, 3])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(query, *rest):
        return paged_attention(query + 1, *rest, window=30).flatten(1)

    expected = paged_attention(case.query + 1, *case[1:], window=30).flatten(1)
    assert torch.equal(step(*case), expected)
