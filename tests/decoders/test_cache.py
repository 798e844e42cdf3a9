"""PagedCache: the tensors follow the books."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest
import torch

from fastpower.decoders import cache as cache_module
from fastpower.decoders.cache import PagedCache
from fastpower.decoders.transfer import to_device
from fastpower.errors import CacheFull, PromptTooLong, UnknownSequence

LAYERS, HEADS, DIM = 3, 2, 5


def make(num_pages: int = 23, page_size: int = 4, dtype: torch.dtype = torch.float32) -> PagedCache:
    cache = PagedCache(LAYERS, HEADS, DIM, page_size=page_size, num_pages=num_pages, dtype=dtype)
    # Poison: reading a slot that was never written must show.
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    return cache


def kv_of(ids: list[int], positions: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """K/V as a model would make them: a function of layer, token and position. (L, N, H, D)"""
    i = torch.tensor(ids, dtype=torch.float32)[None, :, None, None]
    p = torch.tensor(positions, dtype=torch.float32)[None, :, None, None]
    layer = torch.arange(LAYERS, dtype=torch.float32)[:, None, None, None]
    lane = torch.arange(HEADS * DIM, dtype=torch.float32).reshape(1, 1, HEADS, DIM)
    key = torch.sin(i * 1.7 + p * 0.3 + layer + lane * 0.1)
    return key.to(dtype), (key * 2 - layer).to(dtype)


def append(cache: PagedCache, rows: dict[int, list[int]], commit: bool = True):
    plan = cache.reserve(list(rows), [len(ids) for ids in rows.values()])
    key, value = kv_of([i for ids in rows.values() for i in ids], plan.positions, cache.dtype)
    slots = torch.from_numpy(plan.slots)
    cache.k.flatten(1, 2)[:, slots] = key
    cache.v.flatten(1, 2)[:, slots] = value
    if commit:
        cache.commit(plan)
    return plan


def read(cache: PagedCache, sequence: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    table, _ = cache.page_tables([sequence])
    position = torch.arange(length)
    slots = table[0].long()[position // cache.page_size] * cache.page_size + position % cache.page_size
    return cache.k.flatten(1, 2)[:, slots], cache.v.flatten(1, 2)[:, slots]


def assert_holds(cache: PagedCache, sequence: int, ids: list[int]) -> None:
    assert cache.length(sequence) == len(ids)
    for got, expected in zip(
        read(cache, sequence, len(ids)), kv_of(ids, np.arange(len(ids)), cache.dtype), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forks_that_diverge_read_back_their_own_keys_and_values_in_every_layer(dtype):
    cache = make(dtype=dtype)
    root = cache.add()
    prefix = [7, 3, 9, 1, 4, 2, 8, 8, 5, 6]
    append(cache, {root: prefix})
    forks = [int(f) for f in cache.fork_many([root] * 3, [10, 9, 5])]
    tails = {forks[0]: [11], forks[1]: [12, 13, 14, 15], forks[2]: [16, 17], root: [18]}
    append(cache, tails)
    for fork, length in zip([*forks, root], [10, 9, 5, 10], strict=True):
        assert_holds(cache, fork, prefix[:length] + tails[fork])
    cache.check()


def test_truncate_then_append_overwrites_only_its_own_tokens():
    cache = make()
    root = cache.add()
    append(cache, {root: list(range(10))})
    fork = cache.fork(root, 10)
    cache.truncate(fork, 6)
    append(cache, {fork: [50, 51, 52]})
    assert_holds(cache, root, list(range(10)))
    assert_holds(cache, fork, [*range(6), 50, 51, 52])


def test_rollback_after_the_slots_were_written_leaves_every_sequence_as_it_was():
    cache = make()
    root = cache.add()
    append(cache, {root: list(range(11))})
    fork = cache.fork(root, 9)
    before = cache.stats()
    plan = append(cache, {fork: [60, 61, 62], root: [63]}, commit=False)
    assert len(plan.copies.source) == 1
    cache.rollback(plan)
    assert cache.stats() == before
    assert_holds(cache, root, list(range(11)))
    assert_holds(cache, fork, list(range(9)))


def test_a_failed_copy_rolls_the_reservation_back(monkeypatch):
    cache = make()
    root = cache.add()
    append(cache, {root: [1, 2, 3]})
    fork = cache.fork(root, 3)
    before = cache.stats()

    def broken(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr("fastpower.kernels.copy_pages", broken)
    with pytest.raises(MemoryError):
        cache.reserve([fork], [1])
    assert cache.stats() == before
    cache.check()


def test_page_tables_are_int32_tensors_that_cover_reserved_tokens():
    cache = make()
    a, b = cache.add(), cache.add()
    append(cache, {a: [1] * 9, b: [2]})
    append(cache, {b: [3] * 6}, commit=False)
    table, lengths = cache.page_tables([a, b])
    assert table.dtype == lengths.dtype == torch.int32
    assert table.shape == (2, 3) and lengths.tolist() == [9, 7] and table[1, 2] == 0
    assert cache.page_tables([cache.add()])[0].shape == (1, 1), "kernels want at least one column"


def test_a_plan_carries_what_a_forward_asks_the_books_for():
    cache = make()
    root = cache.add()
    append(cache, {root: range(9)})
    rows = [root, cache.fork(root, 9), cache.fork(root, 8), cache.add()]
    plan = cache.reserve(rows, [3, 1, 6, 2])
    table, lengths = cache.page_tables(rows)
    assert plan.page_table.tolist() == table.tolist() and plan.lengths.tolist() == lengths.tolist() == [12, 10, 14, 2]
    starts, pages = plan.shared
    assert starts.tolist() == [0, 3, 4] and pages.tolist() == [2, 0] and starts.dtype == pages.dtype == np.int32
    cache.rollback(plan)
    assert cache.reserve([root], [1]).shared is None


def test_a_row_past_the_context_is_refused_before_anything_is_reserved():
    cache = make()
    root, other = cache.add(), cache.add()
    append(cache, {root: range(9)})
    before = cache.stats()
    for new in (4, 2**63 - 1):
        with pytest.raises(PromptTooLong, match=f"have {9 + new} tokens; the model's context is 12: shorten"):
            cache.reserve([other, root], [12, new], max_length=12)
    assert cache.stats() == before
    cache.commit(cache.reserve([other, root], [12, 3], max_length=12))
    cache.check()


def test_the_size_is_given_in_pages_tokens_or_bytes():
    per_token = 2 * LAYERS * HEADS * DIM * 2
    for size, pages in (
        ({"num_pages": 9}, 9),
        ({"cache_tokens": 33}, 9),
        ({"cache_tokens": 36}, 9),
        ({"memory_bytes": per_token * 4 * 9}, 9),
        ({"memory_bytes": per_token * 4 * 10 - 1}, 9),
    ):
        cache = PagedCache(LAYERS, HEADS, DIM, page_size=4, dtype=torch.bfloat16, **size)
        assert cache.num_pages == pages and cache.k.shape == cache.v.shape == (LAYERS, pages, 4, HEADS, DIM)
        assert cache.k.nbytes + cache.v.nbytes == cache.stats()["bytes"] == pages * 4 * per_token


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "exactly one"),
        ({"num_pages": 3, "cache_tokens": 3}, "exactly one"),
        ({"num_pages": 0}, "num_pages"),
        ({"cache_tokens": -4}, "cache_tokens"),
        ({"memory_bytes": 100}, "memory_bytes"),
        ({"num_pages": 3, "page_size": 0}, "page_size"),
        ({"num_pages": 3, "dtype": torch.float64}, "dtype"),
        ({"num_pages": 3, "num_kv_heads": 0}, "num_kv_heads"),
    ],
)
def test_sizes_that_make_no_cache_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        PagedCache(**{"num_layers": 2, "num_kv_heads": 2, "head_dim": 8, **arguments})


def test_a_full_cache_says_what_is_missing_and_keeps_its_contents():
    cache = make(num_pages=4)
    root = cache.add()
    append(cache, {root: list(range(14))})
    fork = cache.fork(root, 14)
    with pytest.raises(CacheFull, match=r"needs 3 pages, 0 are free \(of 4\); free sequences or raise cache_tokens"):
        cache.reserve([fork, root], [1, 8])
    assert_holds(cache, fork, list(range(14)))
    cache.free(root)
    append(cache, {fork: [14, 15]})
    assert_holds(cache, fork, list(range(16)))
    with pytest.raises(UnknownSequence, match=str(root)):
        cache.length(root)


def test_a_remembered_prefix_comes_back_with_its_keys_and_values():
    cache = make()
    prompt = [7, 3, 9, 1, 4, 2, 8, 8, 5, 6]
    first = cache.add()
    append(cache, {first: [*prompt, 30, 31]})
    cache.remember(first, [*prompt, 30, 31])
    cache.free(first)
    stats = cache.stats()
    assert (stats["live_pages"], stats["cached_pages"], stats["free_tokens"]) == (0, 3, 23 * 4)
    assert stats["cached_bytes"] == 3 * 4 * cache.bytes_per_token

    second, length = cache.match(prompt[:-1])
    assert length == 8
    append(cache, {second: [*prompt[8:], 40]})
    assert_holds(cache, second, [*prompt, 40])
    third, length = cache.match([1, 2, 3, 4, 5])
    assert length == cache.length(third) == 0
    cache.forget()
    assert cache.stats()["cached_pages"] == 0
    assert_holds(cache, second, [*prompt, 40])
    cache.check()


def resident_bytes(tensor: torch.Tensor) -> int:
    """How much of a CPU tensor the system has given memory for."""
    page = mmap.PAGESIZE
    first, last = tensor.data_ptr() // page, (tensor.data_ptr() + tensor.nbytes - 1) // page
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(8 * first)
        entries = np.frombuffer(pagemap.read(8 * (last - first + 1)), np.uint64)
    return int((entries >> np.uint64(62) != 0).sum()) * page  # bit 63: present, bit 62: swapped


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="asks the Linux kernel which pages exist")
def test_thirty_two_forks_of_a_long_prefix_take_within_a_tenth_of_the_distinct_tokens():
    prefix, new, forks = 1024, 60, 32
    thp_disable = 41  # huge pages would round each layer's memory up to 2 MB
    prctl = ctypes.CDLL(None).prctl
    prctl(thp_disable, 1, 0, 0, 0)
    try:
        cache = PagedCache(3, 4, 32, cache_tokens=200_000)
        assert cache.stats()["bytes"] > 25 * (prefix + forks * new) * cache.bytes_per_token
        root = cache.add()

        def step(sequences, n_new):
            plan = cache.reserve(sequences, n_new)
            slots = torch.from_numpy(plan.slots)
            for kv in (cache.k, cache.v):
                kv.flatten(1, 2)[:, slots] = 1.0
            cache.commit(plan)

        step([root], [prefix])
        family = cache.fork_many([root] * forks, [prefix] * forks)
        peak = 0
        for i in range(new):
            step(family, np.ones(forks, np.int64))
            if i % 10 == 9:
                peak = max(peak, resident_bytes(cache.k) + resident_bytes(cache.v))
    finally:
        prctl(thp_disable, 0, 0, 0, 0)
    stats = cache.stats()
    assert stats["tokens"] == prefix + forks * (prefix + new)
    assert stats["distinct_tokens"] == prefix + forks * new
    distinct = stats["distinct_tokens"] * cache.bytes_per_token
    assert distinct <= peak <= 1.1 * distinct
    assert stats["live_bytes"] <= 1.1 * distinct


def test_page_copies_go_to_the_device_in_one_upload(monkeypatch):
    uploads = []
    monkeypatch.setattr(cache_module, "to_device", lambda *args: uploads.append(args) or to_device(*args))
    cache = PagedCache(1, 1, 8, page_size=4, num_pages=8)
    first = cache.add()
    cache.commit(cache.reserve([first], [6]))
    second = cache.fork(first, 6)
    plan = cache.reserve([first, second], [1, 1])
    assert len(plan.copies.source) == 1 and len(uploads) == 1 and len(uploads[0][0]) == 3
