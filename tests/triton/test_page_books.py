"""Page books on the device, interpreted: sequences read through them are those of a model that copies everything."""

import random

import pytest
import torch
from fastpower.kernels.triton.copy_pages import copy_pages
from fastpower.kernels.triton.page_books import assign, page_books, reserve

PAGE, ROWS, WIDTH, PAGES = 3, 6, 5, 9


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


class Model:
    """Rows as lists of tokens beside the books, a cache that holds the tokens themselves as its only K/V number."""

    def __init__(self):
        self.rows = [[] for _ in range(ROWS)]
        self.books = page_books(ROWS, WIDTH, PAGES, "cpu")
        self.cache = torch.full((2, 1, PAGES, PAGE, 1, 1), -1.0)
        self.next_token = 0

    def assign(self, plan):
        """plan: (source, target, length) per entry."""
        assign(self.books, *map(int32, zip(*plan, strict=True)), PAGE)
        before = [list(row) for row in self.rows]
        for source, target, length in plan:
            if target >= 0:
                self.rows[target] = before[source][:length]

    def append(self, rows):
        """One token each; False if the books say that there is no room."""
        plan = reserve(self.books, int32(rows), PAGE)
        copy_pages(*self.cache, plan.source, plan.target, plan.tokens)
        if not plan.fits.item():
            assert (plan.slots == -1).all() and (plan.source == -1).all()
            return False
        for row, slot in zip(rows, plan.slots.tolist(), strict=True):
            assert (slot >= 0) == (row >= 0)
            if row >= 0:
                self.rows[row].append(self.next_token)
                self.cache[:, 0, slot // PAGE, slot % PAGE] = self.next_token
                self.next_token += 1
        return True

    def check(self):
        """Every row reads back, every reference is counted, free pages are those of no row, each once."""
        held = [0] * PAGES
        for row, pages, length in zip(
            self.rows, self.books.page_table.tolist(), self.books.lengths.tolist(), strict=True
        ):
            assert length == len(row)
            pages = pages[: -(-length // PAGE)]
            assert self.cache[1, 0, pages].flatten()[:length].tolist() == row
            for page in pages:
                held[page] += 1
        assert self.books.references.tolist() == held
        free = self.books.free[: self.books.free_count.item()].tolist()
        assert sorted(free) == [page for page in range(PAGES) if not held[page]]


@pytest.mark.parametrize("seed", range(2))
def test_random_plans_keep_every_row_and_every_reference(seed):
    rng = random.Random(seed)
    model = Model()
    full = forked = 0
    for _ in range(40):
        if rng.random() < 0.8:
            some = rng.sample(range(ROWS), rng.randint(1, ROWS))
            if not model.append([row if rng.random() < 0.9 else -1 for row in some]):
                full += 1
                model.check()
                model.assign([(row, row, len(model.rows[row]) // 2) for row in range(ROWS)])
        else:
            targets = rng.sample(range(ROWS), rng.randint(1, ROWS))
            sources = [rng.randrange(ROWS) for _ in targets]
            forked += sum(s != t for s, t in zip(sources, targets, strict=True))
            model.assign(
                [
                    (s, t if rng.random() < 0.9 else -1, max(rng.randint(0, len(model.rows[s])) for _ in range(3)))
                    for s, t in zip(sources, targets, strict=True)
                ]
            )
        model.check()
    assert forked > 10 and full > 0


def test_rows_exchanged_in_one_plan_free_nothing():
    """Released before retained, their pages would be free for a moment and be pushed on the stack."""
    model = Model()
    for _ in range(4):
        model.append([0, 1])
    free = model.books.free_count.item()
    model.assign([(0, 1, 4), (1, 0, 4)])
    assert model.books.free_count.item() == free
    model.check()


def test_forks_of_a_partial_page_cost_one_copy_less_than_there_are_holders():
    model = Model()
    for _ in range(4):
        model.append([0])
    model.assign([(0, 1, 4), (0, 2, 4)])
    plan = reserve(model.books, int32([0, 1, 2]), PAGE)
    assert (plan.source >= 0).sum() == 2 and plan.tokens.sum() == 2
    assert len(set(plan.slots.tolist())) == 3


def test_a_reservation_without_room_changes_nothing():
    """First for lack of columns in the page table, then for lack of pages; partial pages among the rows."""
    model = Model()
    for _ in range(PAGE * WIDTH):
        assert model.append([0])
    model.assign([(0, 1, 4), (0, 2, 4)])
    assert unchanged(model, [1, 0, 2])
    for length in range(4, PAGE * WIDTH):
        assert model.append([1]) and len(model.rows[1]) == length + 1
    while model.books.free_count.item():
        assert model.append([3])
    assert unchanged(model, [2, 4, -1])
    model.assign([(1, 1, 0)])
    assert model.append([2, 4, -1])
    model.check()


def unchanged(model, rows):
    """A reservation of these rows fails and leaves the books as they were."""
    before = [x.clone() for x in model.books]
    free = model.books.free_count.item()
    failed = not model.append(rows)
    same = all(torch.equal(x, y) for x, y in zip(model.books[:3], before[:3], strict=True))
    model.check()
    return failed and same and model.books.free_count.item() == free
