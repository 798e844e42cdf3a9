"""``paged_attention`` of the Triton backend, interpreted, against the float64 reference."""

import pytest
import torch
import torch.nn.functional as nnf
from fastpower.kernels.reference.paged_attention import paged_attention as reference
from fastpower.kernels.triton import paged_attention as kernels
from fastpower.kernels.triton.attention_tiles import plan_tiles

from fastpower.kernels import paged_attention
from tests.kernels.paging_inputs import Case, gathered, make_case, make_tree, visible

MIXED = dict(lengths=[1, 40, 300], queries=[1, 5, 2], q_heads=3, kv_heads=1)


def error(value, case, **options):
    doubled = Case(*(x.double() if x.is_floating_point() else x for x in case))
    return (value.double() - reference(*doubled, **options)).abs().max()


def error_of_torch(case, window=0, softcap=0.0):
    """PyTorch in the case's own dtype, on gathered keys and values."""
    rows = []
    for s, new in enumerate(case.query_starts.diff().tolist()):
        q, k, v = gathered(case, s)
        mask = visible(new, k.shape[1], window)
        if softcap:
            score = softcap * torch.tanh((q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5 / softcap)
            rows.append((score.masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype) @ v).transpose(0, 1))
        else:
            out = nnf.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)
            rows.append(out[0].transpose(0, 1))
    return error(torch.cat(rows), case, window=window, softcap=softcap)


def assert_error_at_most_doubles(case, **options):
    value = paged_attention(*case, **options, backend="triton")
    assert error(value, case, **options) <= 2 * error_of_torch(case, **options)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_error_is_at_most_twice_that_of_torch(head_dim):
    assert_error_at_most_doubles(make_case(**MIXED, head_dim=head_dim))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_error_in_low_precision_is_at_most_twice_that_of_torch(dtype):
    assert_error_at_most_doubles(make_case(**MIXED, head_dim=80, dtype=dtype))


@pytest.mark.parametrize("window", [1, 33, 280])
def test_window_hides_older_positions(window):
    assert_error_at_most_doubles(make_case(**MIXED, head_dim=64), window=window)


def test_softcap_bounds_scores():
    case = make_case(**MIXED, head_dim=64)
    assert_error_at_most_doubles(case._replace(query=8 * case.query), softcap=5.0)


def test_grouped_heads_page_sizes_and_idle_sequences():
    case = make_case([5, 70, 33], queries=[0, 3, 0], q_heads=8, kv_heads=2, head_dim=64, page_size=5)
    assert error(paged_attention(*case, scale=0.3, backend="triton"), case, scale=0.3) < 1e-6


@pytest.fixture(scope="module")
def group():
    """Three sequences that share 272 tokens (one split of 256 and a page) and one that shares none; its output."""
    case = make_case([300, 530, 290], queries=[1, 3, 1], q_heads=2, kv_heads=1, shared_tokens=272)
    return case, paged_attention(*case, backend="triton")


def test_reading_a_shared_run_once_changes_no_bit(group, monkeypatch):
    case, alone = group
    assert error(alone, case) < 1e-6
    shared = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([17, 0], dtype=torch.int32))
    assert torch.equal(paged_attention(*case, shared=shared, backend="triton"), alone)
    plan = plan_tiles(*case[4:], **CUT, shared=shared)
    read = plan.tiles[plan.tiles[:, 0] >= 0]
    assert read.tolist()[-1] == [0, 0, 4, 0, 0, 256]  # one tile reads the split that sequences 0 and 1 share
    assert read[:3, 4].tolist() == [256, 256, 0]  # which their own begin behind


CUT = dict(queries=5, HG=2, M=16, split=256, page_size=16)


def test_a_plan_made_once_serves_in_place_of_one_made_by_every_call(group, monkeypatch):
    case, alone = group
    plan = plan_tiles(*case[4:], **CUT)
    assert plan.last.tolist() == [299, 527, 528, 529, 289]
    monkeypatch.setattr(kernels, "plan_tiles", None)  # nobody asks for another
    assert torch.equal(kernels.paged_attention(*case, plan=plan), alone)


@pytest.mark.parametrize("shared", [None, ([0, 3, 4], [17, 2])], ids=["alone", "shared"])
def test_idle_tiles_are_marked_and_every_query_has_its_rows(shared, case=([300, 20, 90, 7], [3, 0, 65, 1])):
    """More owners than a block of the search has lanes; queries of none, one and several tiles."""
    lengths, queries = ([*x] * 100 for x in case)
    starts = torch.tensor([0, *queries]).cumsum(0).to(torch.int32)
    groups = shared and tuple(torch.tensor(x, dtype=torch.int32) for x in shared)
    n = int(starts[-1])
    sizes = dict(queries=n, HG=3, M=16, split=256, page_size=16, low=1, high=n - 1, shared=groups)
    tiles, last = plan_tiles(starts, torch.tensor(lengths, dtype=torch.int32), **sizes)
    own = tiles[(tiles[:, 0] >= 0) & (tiles[:, 5] == 0)]
    covered = [
        (first + row // 3, row % 3)
        for _, first, end, at, _, _ in own.tolist()
        for row in range(at, at + 16)
        if first + row // 3 < end
    ]
    assert sorted(covered) == [(q, h) for q in range(1, n - 1) for h in range(3)]
    ends = [length - new + i for length, new in zip(lengths, queries, strict=True) for i in range(new)]
    assert last[1:-1].tolist() == ends[1:-1]
    assert (tiles[:, 0] == -1).any() and (tiles[:, 5] > 0).sum() == (0 if shared is None else 13)  # ⌈68 · 3 / 16⌉


def spy(kernel, calls):
    """The kernel, noting the keyword arguments of each launch."""

    class Spied:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: (calls.append(kwargs), kernel[grid](*args, **kwargs))

    return Spied()


def test_neither_the_batch_nor_the_number_of_launches_nor_the_tables_width_changes_a_bit(group, monkeypatch):
    case, together = group
    short = make_case([250], q_heads=2, kv_heads=1)
    narrow, wide = short._replace(page_table=short.page_table[:, :16]), short
    assert narrow.page_table.shape[1] * 16 <= kernels.SPLIT < wide.page_table.shape[1] * 16
    assert torch.equal(paged_attention(*narrow, backend="triton"), paged_attention(*wide, backend="triton"))
    for s in (0, 1):
        rows = slice(case.query_starts[s], case.query_starts[s + 1])
        alone = case._replace(
            query=case.query[rows],
            page_table=case.page_table[s : s + 1],
            query_starts=torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            lengths=case.lengths[s : s + 1],
        )
        assert torch.equal(paged_attention(*alone, backend="triton"), together[rows])
    monkeypatch.setattr(kernels, "MAX_PARTIAL_BYTES", 2 * 3 * 2 * 66 * 4)  # two queries a launch
    launches = []
    monkeypatch.setattr(kernels, "attend_kernel", spy(kernels.attend_kernel, launches))
    assert torch.equal(paged_attention(*case, backend="triton"), together)
    assert len(launches) == 3


def test_a_query_decoded_alone_has_the_bits_it_has_in_a_chunk():
    chunk = make_case([270], queries=[6], q_heads=2, kv_heads=1, head_dim=80)
    value = paged_attention(*chunk, backend="triton")
    for i in (0, 5):
        decode = chunk._replace(
            query=chunk.query[i : i + 1],
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            lengths=torch.tensor([265 + i], dtype=torch.int32),
        )
        assert torch.equal(paged_attention(*decode, backend="triton")[0], value[i])


def test_trees_of_several_sequences_through_the_facade():
    queries = [9, 64, 1]
    case, words = make_case([70, 300, 40], queries, q_heads=2, kv_heads=1, head_dim=64), make_tree(queries)
    value = paged_attention(*case, ancestors=words, backend="triton")
    torch.testing.assert_close(value, paged_attention(*case, ancestors=words, backend="reference"), atol=2e-6, rtol=0)


def test_tree_queries_see_their_ancestors_only():
    """Five new tokens in a tree: 0 → 1 → 3 and 0 → 2 → 4."""
    case = make_case([265], queries=[5], q_heads=2, kv_heads=1, head_dim=64)
    paths = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4]]
    words = torch.tensor([sum(1 << j for j in path) for path in paths])
    value = kernels.paged_attention(*case, ancestors=words)
    q, k, v = (x.double() for x in gathered(case, 0))
    for i, path in enumerate(paths):
        seen = [*range(260), *(260 + j for j in path)]
        p = (q[:, i] @ k[0, seen].T * 64**-0.5).softmax(-1)
        torch.testing.assert_close(value[i].double(), p @ v[0, seen], atol=1e-6, rtol=0)
