"""``paged_attention`` with ``ancestors``: queries that form a tree see their own path only."""

import itertools

import pytest
import torch
import torch.nn.functional as nnf
from fastpower.kernels.reference.paged_attention import paged_attention as reference

from fastpower.kernels import paged_attention
from tests.kernels.paging_inputs import gathered, make_case, make_tree

BACKENDS = ("reference", "cpu")
# Trees that begin inside a split of 64 keys, at its edge, cross it, and fill a word; one query; no query.
TREES = {"lengths": [70, 128, 150, 64, 333, 9, 40], "queries": [9, 64, 37, 64, 1, 9, 0]}


def eager(case, words):
    """torch's attention in the case's own dtype, under the mask that the words spell."""
    rows = []
    for s, new in enumerate(case.query_starts.diff().tolist()):
        if not new:
            continue
        q, k, v = gathered(case, s)
        mask = torch.ones(new, k.shape[1], dtype=torch.bool)
        for i, j in itertools.product(range(new), repeat=2):
            mask[i, k.shape[1] - new + j] = int(words[case.query_starts[s] + i]) >> j & 1
        batch = (x.unsqueeze(0) for x in (q, k, v))
        rows.append(nnf.scaled_dot_product_attention(*batch, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_error_is_at_most_twice_that_of_torch(isa, dtype, head_dim):
    case, words = make_case(**TREES, head_dim=head_dim, dtype=dtype), make_tree(TREES["queries"])
    exact = reference(*(x.double() if x.is_floating_point() else x for x in case), ancestors=words)
    out = paged_attention(*case, ancestors=words, backend="cpu").double()
    assert (out - exact).abs().max() <= 2 * (eager(case, words).double() - exact).abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_is_causal_attention_bit_for_bit(backend):
    case = make_case(**TREES)
    chain = torch.tensor([(2 << i) - 1 - (1 << 64 if i == 63 else 0) for n in TREES["queries"] for i in range(n)])
    assert torch.equal(
        paged_attention(*case, ancestors=chain, backend=backend), paged_attention(*case, backend=backend)
    )


def test_tokens_of_other_branches_are_not_touched(isa):
    """Infinities in K/V of a hidden token leave no trace: it is skipped, not multiplied by 0."""
    case = make_case([70], [9])
    words = torch.tensor([0b1, 0b11, 0b101, 0b1011, 0b10101, 0b101011, 0b1010101, 0b10000001, 0b100000101])
    clean = paged_attention(*case, ancestors=words)
    page, offset = case.page_table[0, (61 + 1) // 16], (61 + 1) % 16  # new token 1
    case.k_cache[page, offset], case.v_cache[page, offset] = torch.nan, torch.inf
    out = paged_attention(*case, ancestors=words)
    hidden = (words >> 1 & 1) == 0
    assert torch.equal(out[hidden], clean[hidden])
    assert not out[~hidden].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_threads_and_sharing_do_not_change_a_bit(isa, threads, dtype):
    lengths, queries = [530, 590, 700], [2, 60, 33]
    case, words = make_case(lengths, queries, dtype=dtype, shared_tokens=528), make_tree(queries)
    threads(1)
    together = paged_attention(*case, ancestors=words)
    shared = (torch.tensor([0, 3], dtype=torch.int32), torch.tensor([33], dtype=torch.int32))
    for n in (1, 2, 5):
        threads(n)
        assert torch.equal(paged_attention(*case, ancestors=words), together)
        assert torch.equal(paged_attention(*case, ancestors=words, shared=shared), together)
    for s in range(3):
        alone = case._replace(
            query=case.query.split(queries)[s],
            page_table=case.page_table[s : s + 1],
            query_starts=torch.tensor([0, queries[s]], dtype=torch.int32),
            lengths=case.lengths[s : s + 1],
        )
        out = paged_attention(*alone, ancestors=words.split(queries)[s])
        assert torch.equal(out, together.split(queries)[s])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "words, options, error, message",
    [
        ([1, 1, 3], {"window": 5}, ValueError, "ancestors do not go with a window, got window=5"),
        ([1, 1], {}, ValueError, r"ancestors must have shape \(3,\), got \(2,\)"),
        ([1.0, 1.0, 3.0], {}, TypeError, "ancestors must be int64, got float32"),
        ([1, 1, 1], {}, ValueError, r"highest bit of ancestors\[2\] must be 1, .* sequence 1's, got the word 1"),
        ([3, 1, 3], {}, ValueError, r"highest bit of ancestors\[0\] must be 0"),
    ],
)
def test_bad_ancestors_are_named(backend, words, options, error, message):
    case = make_case([20, 40], [1, 2])
    with pytest.raises(error, match=message):
        paged_attention(*case, ancestors=torch.tensor(words), **options, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_queries_than_a_word_has_bits_are_refused(backend):
    with pytest.raises(ValueError, match="at most 64 queries of a sequence, but sequence 0 has 65"):
        paged_attention(*make_case([80], [65]), ancestors=torch.ones(65, dtype=torch.int64), backend=backend)


def test_operator_passes_opcheck_and_compiles_without_graph_break():
    queries = [3, 9]
    case, words = make_case([20, 70], queries), make_tree(queries)
    operator = torch.ops.fastpower.paged_attention.default
    torch.library.opcheck(operator, (*case, 0.125, 0, 0.0, None, None, words, "cpu"))
    step = torch.compile(paged_attention, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    assert torch.equal(step(*case, ancestors=words), paged_attention(*case, ancestors=words))
