"""The page books under load, with nothing but the extension and numpy: this file also runs under the address and
undefined-behaviour sanitizers, where a torch import would cost more than the tests."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from fastpower import _C
from tests.books.books_model import ModelledTable

CALLS = ["add", "fork", "truncate", "free", "reserve", "close", "remember", "match"]


def random_calls(seed: int, num_pages: int, page_size: int, steps: int) -> dict[str, int]:
    """Random calls on a cache that is often full; returns how often each branch was taken."""
    rng = np.random.default_rng(seed)
    model = ModelledTable(num_pages, page_size)
    taken = dict.fromkeys(["add", "fork", "truncate", "free", "reserve", "full", "commit", "rollback", "match"], 0)

    def some(handles: list[int], most: int) -> list[int]:
        return [int(h) for h in rng.permutation(handles)[: rng.integers(1, most + 1)]]

    for step in range(steps):
        closed = model.closed()
        call = rng.choice(CALLS, p=[0.05, 0.14, 0.1, 0.13, 0.26, 0.2, 0.06, 0.06])
        if not closed and model.plans:
            call = "close"
        if call == "add" or (not closed and call != "close"):
            if len(model.tokens) < 40:
                model.add()
                taken["add"] += 1
        elif call == "fork" and len(model.tokens) < 60:
            parents = [int(h) for h in rng.choice(closed, size=rng.integers(1, 9))]
            model.fork(parents, [int(rng.integers(0, len(model.tokens[p]) + 1)) for p in parents])
            taken["fork"] += 1
        elif call == "truncate":
            handles = some(closed, 4)
            model.truncate(handles, [int(rng.integers(0, len(model.tokens[h]) + 1)) for h in handles])
            taken["truncate"] += 1
        elif call == "free":
            model.free(some(closed, 6))
            taken["free"] += 1
        elif call == "reserve":
            handles = some(closed, 6)
            n_new = [int(n) for n in rng.integers(1, page_size + 2, len(handles))]
            try:
                before = model.snapshot()
                model.reserve(handles, n_new)
                taken["reserve"] += 1
            except RuntimeError as error:  # CacheFull is one
                assert "free sequences or raise cache_tokens" in str(error)
                assert model.snapshot() == before
                taken["full"] += 1
        elif call == "close" and model.plans:
            plan = int(rng.choice(list(model.plans)))
            kind = "commit" if rng.random() < 0.7 else "rollback"
            getattr(model, kind)(plan)
            taken[kind] += 1
        elif call == "remember":
            handle = int(rng.choice(closed))
            model.remember(handle, len(model.tokens[handle]))
        elif call == "match" and model.remembered and len(model.tokens) < 60:
            known = sorted(model.remembered)
            matched = model.match((*known[rng.integers(len(known))], 0, 1))
            taken["match"] += len(model.tokens[matched]) > 0
        if step % 5 == 0:
            model.verify()
    model.drain()
    taken["copies"] = model.copies
    return taken


@pytest.mark.parametrize(("seed", "num_pages", "page_size"), [(1, 23, 3), (2, 19, 16), (3, 61, 1), (4, 90, 5)])
def test_random_calls_lose_no_page_and_mix_up_no_token(seed, num_pages, page_size):
    taken = random_calls(seed, num_pages, page_size, steps=1000)
    enough = dict(fork=30, truncate=30, free=30, reserve=40, commit=20, rollback=10, full=10, match=10)
    enough["copies"] = 10 if page_size > 1 else 0  # pages of one slot are never partly filled
    assert all(taken[name] >= least for name, least in enough.items()), taken


def test_every_error_path_leaves_the_table_usable():
    table = _C.SequenceTable(7, 3)
    root = table.add()
    table.commit(table.reserve([root], [8])[0])
    bad = [
        lambda: table.fork(root, 9),
        lambda: table.fork_many([root] * 9, [8] * 8),
        lambda: table.truncate(root, -1),
        lambda: table.free_many([root, root]),
        lambda: table.reserve([root], [100]),
        lambda: table.reserve([root, 5], [1, 1]),
        lambda: table.reserve_step([root, 5], [1, 1], 1 << 20),
        lambda: table.commit(9),
        lambda: table.page_tables([root], np.zeros((1, 2), np.int32), np.zeros(1, np.int32)),
        lambda: table.page_tables([root], np.zeros((0, 0), np.int32), np.zeros(0, np.int32)),
    ]
    for call in bad:
        with pytest.raises((ValueError, RuntimeError, KeyError)):
            call()
        table.check()
    table.free(root)
    assert table.free_pages == 7


def test_a_table_dropped_with_open_plans_and_live_sequences_is_released():
    for _ in range(50):
        table = _C.SequenceTable(40, 4)
        handles = [table.add() for _ in range(9)]
        table.reserve(handles, [5] * 9)
        del table
    gc.collect()


def test_empty_calls_do_nothing():
    table = _C.SequenceTable(7, 3)
    nothing = np.empty(0, np.int64)
    assert table.fork_many(nothing, nothing).tolist() == []
    table.free_many(nothing)
    table.rollback(table.reserve_step(nothing, nothing, 9)[0])
    plan, slots, *_ = table.reserve(nothing, nothing)
    assert slots.tolist() == []
    table.commit(plan)
    table.page_tables(nothing, np.zeros((0, 4), np.int32), np.zeros(0, np.int32))
    starts, pages = table.shared_runs(nothing, nothing)
    assert starts.tolist() == [0] and pages.tolist() == []
    table.check()
