"""The books of the cache beside a model that a reader can check by eye: each sequence is a list of values.

Every new token gets a value never used before and is written into the slot that the plan names. ``verify`` reads all
sequences back through their page tables: a page written by two owners, a missing copy or a page given out twice shows
as a wrong value. Each value also knows the token ids up to its position (what K/V depend on), so that ``match`` can be
held to them. Needs only ``fastpower._C`` and numpy.
"""

from __future__ import annotations

import itertools

import numpy as np

from fastpower import _C


class ModelledTable:
    def __init__(self, num_pages: int, page_size: int) -> None:
        self.table = _C.SequenceTable(num_pages, page_size)
        self.page_size = page_size
        self.memory = np.full(num_pages * page_size, -1, np.int64)
        self.tokens: dict[int, list[int]] = {}
        self.plans: dict[int, tuple] = {}  # id → (handles, slots, values, row of each value)
        self.copies = 0  # made so far
        self.values = itertools.count()
        self.prefix: dict[int, tuple[int, ...]] = {}  # value → token ids up to and including its own
        self.remembered: set[tuple[int, ...]] = set()  # full-page prefixes that match() must find
        self.seen: set[int] = set()  # handles ever given out

    # ------------------------------------------------------------------------------------------------- operations

    def _register(self, handle: int, tokens: list[int]) -> int:
        assert handle not in self.seen, f"handle {handle} was given out twice"
        self.seen.add(handle)
        self.tokens[handle] = tokens
        return handle

    def add(self) -> int:
        return self._register(self.table.add(), [])

    def fork(self, handles, lengths) -> list[int]:
        free = self.table.free_pages
        forks = [int(h) for h in self.table.fork_many(handles, lengths)]
        assert self.table.free_pages == free, "a fork took pages"
        for fork, parent, length in zip(forks, handles, lengths, strict=True):
            self._register(fork, self.tokens[parent][:length])
        return forks

    def truncate(self, handles, lengths) -> None:
        self.table.truncate_many(handles, lengths)
        for handle, length in zip(handles, lengths, strict=True):
            del self.tokens[handle][length:]

    def free(self, handles) -> None:
        self.table.free_many(handles)
        for handle in handles:
            del self.tokens[handle]

    def reserve(self, handles, n_new) -> int:
        """Opens a plan, makes its copies and writes its slots."""
        free, unused = self.table.free_pages, self.table.stats()["free_pages"]
        need = self.table.pages_needed(handles, n_new)
        plan, slots, positions, source, target, tokens = self.table.reserve(handles, n_new)
        assert self.table.free_pages == free - need
        before = np.concatenate(
            [np.arange(len(self.tokens[h]), len(self.tokens[h]) + n) for h, n in zip(handles, n_new, strict=True)]
        )
        assert positions.tolist() == before.tolist()
        assert not set(source.tolist()) & set(target.tolist())
        assert len(set(target.tolist())) == len(target)

        written = set((slots // self.page_size).tolist()) | set(target.tolist())
        rows = dict(zip(handles, np.split(slots // self.page_size, np.cumsum(n_new)[:-1]), strict=True))
        for other in self.tokens:
            own = set(rows[other].tolist()) if other in rows else set()
            foreign = (written - own) & set(self.pages(other)[0])
            assert not foreign - set(target.tolist()) or other in rows, f"plan writes pages {foreign} of {other}"
            if other in rows:
                assert not foreign, f"plan writes pages {foreign} of {other} for another row"

        self.copies += len(source)
        page = self.memory.reshape(-1, self.page_size)
        for s, t, n in zip(source, target, tokens, strict=True):
            page[t, :n] = page[s, :n]
        values = np.fromiter(itertools.islice(self.values, len(slots)), np.int64, len(slots))
        self.memory[slots] = values
        for handle, new in zip(handles, np.split(values, np.cumsum(n_new)[:-1]), strict=True):
            prefix = self.ids(handle)
            for value in new.tolist():
                prefix = (*prefix, int(value % 7 == 3))  # few different ids: unrelated sequences often agree
                self.prefix[value] = prefix
        self.plans[plan] = (list(handles), list(n_new), values)
        if need > unused:
            self._forget_evicted(need - unused)
        return plan

    def commit(self, plan: int) -> None:
        handles, n_new, values = self.plans.pop(plan)
        self.table.commit(plan)
        for handle, new in zip(handles, np.split(values, np.cumsum(n_new)[:-1]), strict=True):
            self.tokens[handle] += new.tolist()

    def rollback(self, plan: int) -> None:
        """The slots were written by ``reserve``: nothing of that may show afterwards."""
        self.plans.pop(plan)
        self.table.rollback(plan)

    def append(self, handles, n_new) -> None:
        self.commit(self.reserve(handles, n_new))

    # ---------------------------------------------------------------------------------------------- prefix reuse

    def ids(self, handle: int) -> tuple[int, ...]:
        tokens = self.tokens[handle]
        return self.prefix[tokens[-1]] if tokens else ()

    def remember(self, handle: int, count: int) -> None:
        ids = self.ids(handle)[:count]
        self.table.remember(handle, ids)
        self.remembered.update(ids[:n] for n in range(self.page_size, count + 1, self.page_size))

    def match(self, ids) -> int:
        ids = tuple(ids)
        handle, length = self.table.match(ids)
        known = [n for n in range(self.page_size, len(ids) + 1, self.page_size) if ids[:n] in self.remembered]
        assert length == max(known, default=0)
        pages, extent = self.pages(handle)
        assert extent == length == len(pages[: length // self.page_size]) * self.page_size
        position = np.arange(length)
        slots = np.asarray(pages, np.int64)[position // self.page_size] * self.page_size + position % self.page_size
        values = self.memory[slots]
        assert [self.prefix[v] for v in values.tolist()] == [ids[: n + 1] for n in range(length)]
        return self._register(handle, values.tolist())

    def forget(self) -> None:
        self.table.forget()
        self._forget_evicted(None)

    def _forget_evicted(self, pages: int | None) -> None:
        """Finds out by asking which prefixes are gone: as many as there were pages missing, ends before beginnings."""
        gone = set()
        for ids in sorted(self.remembered):
            handle, length = self.table.match(ids)
            self.table.free(handle)
            self.seen.add(handle)
            if length < len(ids):
                gone.add(ids)
        assert pages is None or len(gone) == pages
        self.remembered -= gone
        for ids in self.remembered:
            assert len(ids) == self.page_size or ids[: -self.page_size] in self.remembered

    # ------------------------------------------------------------------------------------------------ inspection

    def closed(self) -> list[int]:
        """Sequences that are not rows of an open plan."""
        busy = {handle for handles, _, _ in self.plans.values() for handle in handles}
        return [handle for handle in self.tokens if handle not in busy]

    def pages(self, handle: int) -> tuple[list[int], int]:
        columns = self.table.max_pages([handle])
        table, lengths = np.empty((1, columns), np.int32), np.empty(1, np.int32)
        self.table.page_tables([handle], table, lengths)
        return table[0].tolist(), int(lengths[0])

    def snapshot(self) -> tuple:
        """All that can be seen from outside."""
        return {h: (self.table.length(h), self.pages(h)) for h in self.tokens}, self.table.stats()

    def verify(self) -> None:
        self.table.check()
        held: list[int] = []
        distinct: set[int] = set()
        for handle, tokens in self.tokens.items():
            pages, _ = self.pages(handle)
            held += pages
            assert self.table.length(handle) == len(tokens)
            position = np.arange(len(tokens))
            slots = np.asarray(pages, np.int64)[position // self.page_size] * self.page_size + position % self.page_size
            assert self.memory[slots].tolist() == tokens, f"sequence {handle} does not read back its own tokens"
            distinct.update(slots.tolist())
        stats = self.table.stats()
        assert stats["pages"] == stats["live_pages"] + stats["cached_pages"] + stats["free_pages"]
        assert stats["cached_pages"] <= len(self.remembered)
        assert stats["sequences"] == len(self.tokens) and stats["open_plans"] == len(self.plans)
        assert stats["tokens"] == sum(map(len, self.tokens.values()))
        assert stats["distinct_tokens"] == len(distinct)
        if not self.plans:  # open plans hold the sources of their copies, too
            assert stats["live_pages"] == len(set(held))
            assert stats["shared_pages"] == sum(held.count(page) > 1 for page in set(held))

    def drain(self) -> None:
        """Closes and frees everything; every page must be free then."""
        for plan in list(self.plans):
            self.rollback(plan)
        self.free(list(self.tokens))
        self.verify()
        assert self.table.free_pages == self.table.num_pages, "pages leaked"
        assert self.table.stats()["cached_pages"] == len(self.remembered)
        self.forget()
        assert self.table.stats()["free_pages"] == self.table.num_pages, "remembered pages leaked"


#: calls with bad arguments on a table and two of its sequences; all are ValueErrors and change nothing
BAD_CALLS = {
    "fork beyond the end": lambda t, a, b: t.fork_many([a, a], [13, 14]),
    "fork at a negative length": lambda t, a, b: t.fork_many([a, a], [0, -1]),
    "truncate beyond the end": lambda t, a, b: t.truncate_many([b, a], [1, 14]),
    "truncate twice": lambda t, a, b: t.truncate_many([a, b, a], [1, 1, 1]),
    "free twice": lambda t, a, b: t.free_many([a, b, a]),
    "reserve twice": lambda t, a, b: t.reserve([a, b, a], [1, 1, 1]),
    "reserve nothing": lambda t, a, b: t.reserve([b, a], [1, 0]),
    "reserve a negative number": lambda t, a, b: t.reserve([b, a], [1, -5]),
    "ragged arguments": lambda t, a, b: t.reserve([a, b], [1]),
    "matrix of handles": lambda t, a, b: t.free_many([[a, b]]),
    "too few columns": lambda t, a, b: t.page_tables([a], np.zeros((1, 2), np.int32), np.zeros(1, np.int32)),
    "too few rows": lambda t, a, b: t.page_tables([a, b], np.zeros((1, 5), np.int32), np.zeros(2, np.int32)),
    "remember more than there is": lambda t, a, b: t.remember(a, [1] * 1000),
    "queries longer than the sequence": lambda t, a, b: t.shared_runs([a], [14]),
    "remember a negative token": lambda t, a, b: t.remember(a, [-1]),
    "match a token beyond 32 bits": lambda t, a, b: t.match([2**31]),
    "commit of an unknown plan": lambda t, a, b: t.commit(77),
    "rollback of an unknown plan": lambda t, a, b: t.rollback(0),
}
