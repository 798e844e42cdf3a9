"""What the page books cost per batch: microseconds, whatever the tensors weigh.

python -m pytest bench/bench_page_books.py [-s]
"""

import numpy as np
import pytest

from bench import machine
from fastpower import _C

ROWS, PAGE = 64, 16


def held(table, length):
    sequence = table.add()
    table.commit(table.reserve([sequence], [length])[0])
    return sequence


def report(benchmark, name):
    benchmark.extra_info.update(
        machine.facts(bandwidth=False), microseconds=round(benchmark.stats["median"] * 1e6, 1), rows=ROWS
    )
    print(f"\n{name}: {benchmark.extra_info['microseconds']} us for {ROWS} rows")


@pytest.mark.parametrize("length", [100, 1000, 8190])
def test_fork_reserve_commit_free(benchmark, length):
    """64 forks of one sequence, a token each (with a copied page each), and away again."""
    table = _C.SequenceTable(20_000, PAGE)
    parents = np.full(ROWS, held(table, length))
    lengths, ones = np.full(ROWS, length), np.ones(ROWS, np.int64)

    def step():
        forks = table.fork_many(parents, lengths)
        table.commit(table.reserve(forks, ones)[0])
        table.free_many(forks)

    benchmark(step)
    report(benchmark, f"fork, reserve, commit and free at {length} tokens")


@pytest.mark.parametrize("length", [100, 1000, 8190])
def test_page_tables_and_shared_runs(benchmark, length):
    table = _C.SequenceTable(20_000, PAGE)
    forks = table.fork_many(np.full(ROWS, held(table, length)), np.full(ROWS, length))
    ones = np.ones(ROWS, np.int64)
    table.reserve(forks, ones)
    page_table, lengths = np.zeros((ROWS, 1 + length // PAGE), np.int32), np.zeros(ROWS, np.int32)

    def export():
        table.page_tables(forks, page_table, lengths)
        table.shared_runs(forks, ones)

    benchmark(export)
    report(benchmark, f"page_tables and shared_runs at {length} tokens")


@pytest.mark.parametrize("length", [100, 1000])
@pytest.mark.parametrize("crossings", ["one by one", "together"])
def test_books_of_a_decode_step(benchmark, length, crossings):
    """What a forward asks of the books: reservation, page tables, lengths and shared runs, in one call or in five."""
    table = _C.SequenceTable(20_000, PAGE)
    forks = table.fork_many(np.full(ROWS, held(table, length)), np.full(ROWS, length))
    ones = np.ones(ROWS, np.int64)
    page_table, lengths = np.zeros((ROWS, 1 + length // PAGE), np.int32), np.zeros(ROWS, np.int32)

    def one_by_one():
        (table.lengths(forks) + ones).max()
        plan = table.reserve(forks, ones)[0]
        table.page_tables(forks, page_table, lengths)
        table.shared_runs(forks, ones)
        table.rollback(plan)

    def together():
        table.rollback(table.reserve_step(forks, ones, 1 << 20)[0])

    benchmark(together if crossings == "together" else one_by_one)
    report(benchmark, f"books of a step at {length} tokens, {crossings}")


def test_reserve_that_evicts(benchmark):
    """Every row takes a page from a cache that is full of remembered prefixes."""
    prompts, length = 190, 1024
    table = _C.SequenceTable(prompts * length // PAGE, PAGE)
    rng = np.random.default_rng(0)
    for _ in range(prompts):
        sequence = held(table, length)
        table.remember(sequence, rng.integers(0, 49_152, length))
        table.free(sequence)
    ones = np.full(ROWS, PAGE)
    rows = np.array([table.add() for _ in range(ROWS)])

    def step():
        table.commit(table.reserve(rows, ones)[0])

    benchmark.pedantic(step, rounds=150)
    assert table.stats()["cached_pages"] == prompts * length // PAGE - 150 * ROWS
    report(benchmark, f"reserve that evicts {ROWS} of {prompts * length // PAGE} pages")
