"""Page books: a page is never lost, never written by two owners, and a call that fails leaves everything as it was."""

from __future__ import annotations

import numpy as np
import pytest

from fastpower import _C
from fastpower.errors import CacheFull, UnknownSequence
from tests.books.books_model import BAD_CALLS, ModelledTable

# ------------------------------------------------------------------------------------------------------- page pool


def test_pool_gives_each_page_once_and_takes_it_back_at_count_zero():
    pool = _C.PagePool(5)
    pages = [pool.allocate() for _ in range(5)]
    assert sorted(pages) == [0, 1, 2, 3, 4]
    with pytest.raises(CacheFull, match=r"needs 1 page, 0 are free \(of 5\)"):
        pool.allocate()
    pool.retain(3)
    pool.release(3)
    assert pool.num_free == 0 and pool.count(3) == 1
    pool.release(3)
    assert pool.num_free == 1 and pool.allocate() == 3


@pytest.mark.parametrize("page", [-1, 5, 2])
@pytest.mark.parametrize("name", ["retain", "release"])
def test_pool_refuses_pages_that_nobody_holds(name, page):
    with pytest.raises(ValueError, match=str(page)):
        getattr(_C.PagePool(5), name)(page)


def test_pool_check_finds_a_wrong_count():
    pool = _C.PagePool(3)
    pool.allocate()
    pool.check([1, 0, 0])
    with pytest.raises(RuntimeError, match="page 0 has reference count 1 but 2 holders"):
        pool.check([2, 0, 0])
    with pytest.raises(RuntimeError, match="page 1 has reference count 0 but 1 holders"):
        pool.check([1, 1, 0])


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (-3, 16), (7, 0), (7, -1), (2**31, 1), (2**20, 2**11)])
def test_sizes_that_do_not_fit_are_refused(num_pages, page_size):
    with pytest.raises(ValueError, match=r"num_pages|page_size"):
        _C.SequenceTable(num_pages, page_size)


# --------------------------------------------------------------------------------------------------- copy-on-write


def grown(length: int, num_pages: int = 50, page_size: int = 5) -> tuple[ModelledTable, int]:
    model = ModelledTable(num_pages, page_size)
    root = model.add()
    if length:
        model.append([root], [length])
    return model, root


def test_fork_takes_no_page_and_copies_at_most_the_partial_one():
    model, root = grown(13)
    used = model.table.num_pages - model.table.free_pages
    forks = model.fork([root] * 4, [13, 12, 10, 0])
    assert model.table.num_pages - model.table.free_pages == used
    plan, _, _, source, target, tokens = model.table.reserve(forks, [1, 1, 1, 1])
    # 13 and 12 end inside the third page, which root holds too; 10 ends at a page boundary and 0 is empty.
    assert source.tolist() == [model.pages(root)[0][2]] * 2 and tokens.tolist() == [3, 2] and len(set(target)) == 2
    model.table.rollback(plan)
    model.verify()


@pytest.mark.parametrize("owners", [2, 3, 7])
def test_when_all_owners_write_at_once_all_but_one_copy(owners):
    model, root = grown(13)
    family = [root, *model.fork([root] * (owners - 1), [13] * (owners - 1))]
    assert model.table.pages_needed(family, [1] * owners) == owners - 1
    model.append(family, [1] * owners)
    model.verify()
    assert model.table.stats()["live_pages"] == 2 + owners


def test_the_owner_that_keeps_the_page_is_the_longest_so_that_rollback_after_writing_loses_nothing():
    model, root = grown(14)
    short = model.fork([root], [11])[0]
    plan = model.reserve([short, root], [3, 1])
    model.verify()
    model.rollback(plan)
    model.verify()


def test_an_owner_outside_the_plan_keeps_everybody_from_writing_in_place():
    model, root = grown(13)
    forks = model.fork([root] * 3, [13] * 3)
    assert model.table.pages_needed(forks, [1] * 3) == 3


def test_an_owner_for_whom_the_page_is_full_never_copies_it_and_is_never_overwritten():
    model, root = grown(23)
    fork = model.fork([root], [12])[0]
    plan = model.reserve([root, fork], [1, 4])
    model.verify()
    model.commit(plan)
    model.verify()


def test_sources_of_copies_are_held_until_commit():
    model, root = grown(13)
    fork = model.fork([root], [13])[0]
    plan, _, _, source, _, _ = model.table.reserve([fork], [1])
    model.table.free_many([root])
    del model.tokens[root]
    free = model.table.free_pages
    model.table.check()
    other = model.table.add()
    taken = model.table.reserve([other], [5 * free])
    assert source[0] not in taken[1] // 5, "the source of an open copy was given out"
    model.table.rollback(taken[0])
    model.table.commit(plan)
    assert model.table.free_pages == free + 1
    model.table.check()


def test_truncate_copies_nothing_and_keeps_the_partial_page():
    model, root = grown(23)
    before = model.pages(root)[0]
    model.truncate([root], [11])
    assert model.pages(root) == (before[:3], 11)
    model.append([root], [2])
    assert model.pages(root) == (before[:3], 13)
    model.verify()


def test_rollback_restores_everything_and_the_same_reserve_gets_the_same_pages():
    model, root = grown(13)
    forks = model.fork([root] * 3, [13, 12, 4])
    before = model.snapshot()
    rows = [*forks, root], [9, 1, 6, 2]
    first = model.table.reserve(*rows)
    model.table.rollback(first[0])
    assert model.snapshot() == before
    second = model.table.reserve(*rows)
    for a, b in zip(first[1:], second[1:], strict=True):
        assert a.tolist() == b.tolist()
    assert second[0] != first[0]


def test_several_plans_may_be_open_and_close_in_any_order():
    model, root = grown(13)
    a, b, c = model.fork([root] * 3, [13, 13, 11])
    one, two, three = model.reserve([a], [1]), model.reserve([b, c], [4, 1]), model.reserve([root], [7])
    model.verify()
    model.commit(two)
    model.verify()
    model.rollback(one)
    model.verify()
    model.commit(three)
    model.verify()
    model.drain()


# ---------------------------------------------------------------------------------------------------------- errors


def test_reserve_is_all_or_nothing_and_says_what_is_missing():
    model, root = grown(13, num_pages=8)
    forks = model.fork([root] * 4, [13] * 4)
    before = model.snapshot()
    with pytest.raises(CacheFull, match=r"needs 9 pages, 5 are free \(of 8\); free sequences or raise cache_tokens"):
        model.table.reserve(forks, [1, 1, 8, 17])
    assert model.snapshot() == before
    with pytest.raises(CacheFull, match="needs"):
        model.table.reserve([root], [2**63 - 1])
    assert model.snapshot() == before
    model.verify()


def test_the_last_page_can_be_used():
    model, root = grown(13, num_pages=8)
    model.append([root], [27])
    assert model.table.free_pages == 0
    with pytest.raises(CacheFull):
        model.table.reserve([root], [1])
    model.verify()


CALLS = {
    "fork": lambda t, s: t.fork(s, 0),
    "fork_many": lambda t, s: t.fork_many([s], [0]),
    "truncate": lambda t, s: t.truncate(s, 0),
    "free": lambda t, s: t.free(s),
    "length": lambda t, s: t.length(s),
    "reserve": lambda t, s: t.reserve([s], [1]),
    "pages_needed": lambda t, s: t.pages_needed([s], [1]),
    "max_pages": lambda t, s: t.max_pages([s]),
    "page_tables": lambda t, s: t.page_tables([s], np.zeros((1, 9), np.int32), np.zeros(1, np.int32)),
    "shared_runs": lambda t, s: t.shared_runs([s], [1]),
    "remember": lambda t, s: t.remember(s, []),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_freed_and_invented_handles_are_unknown_and_named(call):
    model, root = grown(13)
    gone = model.fork([root], [13])[0]
    model.free([gone])
    successor = model.fork([root], [7])[0]  # takes over the place of the freed one in the table
    before = model.snapshot()
    for handle in (gone, 0, 1, -1, gone ^ 1, 2**62, -(2**62)):
        if handle in (root, successor):
            continue
        with pytest.raises(UnknownSequence, match=f"sequence {handle} is unknown"):
            call(model.table, handle)
    assert model.snapshot() == before


def test_handles_are_never_given_out_twice():
    table = _C.SequenceTable(3, 4)
    handles = set()
    for _ in range(3000):
        handle = table.add()
        handles.add(handle)
        table.free(handle)
    assert len(handles) == 3000


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_arguments_are_value_errors_and_change_nothing(call):
    model, root = grown(13)
    fork = model.fork([root], [13])[0]
    before = model.snapshot()
    with pytest.raises(ValueError):
        call(model.table, root, fork)
    assert model.snapshot() == before
    model.verify()


def test_floats_are_not_taken_for_handles_and_a_buffer_of_another_dtype_is_not_silently_copied():
    model, root = grown(13)
    with pytest.raises(TypeError):
        model.table.free_many(np.array([float(root)]))
    with pytest.raises(TypeError):
        model.table.page_tables([root], np.zeros((1, 3), np.int64), np.zeros(1, np.int32))


def test_sequences_of_an_open_plan_cannot_change_and_a_closed_plan_cannot_be_closed_again():
    model, root = grown(13)
    plan = model.reserve([root], [2])
    before = model.snapshot()
    for call in (
        lambda: model.table.fork(root, 5),
        lambda: model.table.truncate(root, 5),
        lambda: model.table.free(root),
        lambda: model.table.reserve([root], [1]),
    ):
        with pytest.raises(ValueError, match=f"row of open plan {plan}; commit or roll back"):
            call()
    assert model.snapshot() == before and model.table.length(root) == 13
    model.commit(plan)
    for close in (model.table.commit, model.table.rollback):
        with pytest.raises(ValueError, match=f"plan {plan} is not open"):
            close(plan)
    model.verify()


# ---------------------------------------------------------------------------------------------------------- export


def test_page_tables_hold_reserved_tokens_and_zeros_behind_the_last_page():
    model, root = grown(13)
    fork = model.fork([root], [4])[0]
    model.reserve([fork], [9])
    table, lengths = np.full((2, 7), 99, np.int32), np.full(2, 99, np.int32)
    model.table.page_tables([root, fork], table, lengths)
    assert lengths.tolist() == [13, 13] and model.table.length(fork) == 4
    assert table[:, 3:].tolist() == [[0] * 4] * 2
    assert table[0, :3].tolist() == model.pages(root)[0] and table[1, :3].tolist() == model.pages(fork)[0]


def naive_runs_share(model: ModelledTable, handles, n_query, starts, pages) -> int:
    """Asserts that every run keeps its promise; returns the page reads saved."""
    saved = 0
    assert starts[0] == 0 and starts[-1] == len(handles) and np.all(np.diff(starts) > 0)
    for g, shared in enumerate(pages):
        rows = range(starts[g], starts[g + 1])
        assert shared == 0 or len(rows) > 1
        assert (shared > 0) == (len(rows) > 1)
        for i in rows:
            assert model.pages(handles[i])[0][:shared] == model.pages(handles[rows[0]])[0][:shared]
            assert shared * model.page_size <= model.pages(handles[i])[1] - n_query[i]
        saved += shared * (len(rows) - 1)
    return saved


def test_shared_runs_are_common_full_pages_before_every_query():
    model, root = grown(5 * 6 + 2)
    other = model.add()
    model.append([other], [8])
    near = model.fork([root] * 3, [32, 31, 27])
    far = model.fork([root] * 2, [6, 11])
    handles = [*near, other, root, *far]
    n_query = [1] * len(handles)
    starts, pages = model.table.shared_runs(handles, n_query)
    # rows: 6, 6, 5 full pages of root | another sequence | root and its short forks (1 and 2 full pages)
    assert starts.tolist() == [0, 3, 4, 7] and pages.tolist() == [5, 0, 1]
    naive_runs_share(model, handles, n_query, starts, pages)
    starts, pages = model.table.shared_runs([root, near[0]], [28, 1])
    assert pages.tolist() == [0, 0], "the pages that hold a query's own tokens are not shared"


def test_a_distant_relative_does_not_spoil_the_run_of_the_near_ones():
    model, root = grown(5 * 6)
    near = model.fork([root] * 4, [30] * 4)
    far = model.fork([root], [5])[0]
    model.append([*near, far], [1] * 5)
    starts, pages = model.table.shared_runs([*near, far], [1] * 5)
    assert starts.tolist() == [0, 4, 5] and pages.tolist() == [6, 0]


def test_stats_count_shared_tokens_once():
    model, root = grown(23)
    model.fork([root] * 31, [22] * 31)
    stats = model.table.stats()
    assert stats["tokens"] == 23 + 31 * 22 and stats["distinct_tokens"] == 23
    assert stats["live_pages"] == stats["shared_pages"] == 5
