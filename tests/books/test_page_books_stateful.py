"""Page books against a model of them: any sequence of calls, good and bad, on a cache that is often full."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpower.errors import CacheFull
from tests.books.books_model import BAD_CALLS, ModelledTable


class PageBooks(RuleBasedStateMachine):
    """Any sequence of calls, good and bad, on a cache that is often full."""

    @initialize(data=st.data(), num_pages=st.integers(4, 14), page_size=st.integers(1, 5), forks=st.integers(0, 3))
    def start(self, data, num_pages, page_size, forks):
        # Begins with a family that shares a partly filled page: the state in which mistakes are possible.
        self.model = ModelledTable(num_pages, page_size)
        root, length = self.model.add(), data.draw(st.integers(1, 2 * page_size))
        self.model.append([root], [length])
        self.model.fork([root] * forks, [data.draw(st.integers(1, length)) for _ in range(forks)])

    def some(self, data, handles):
        return data.draw(st.lists(st.sampled_from(handles), unique=True, min_size=1, max_size=5))

    @rule()
    def add(self):
        self.model.add()

    @precondition(lambda self: self.model.closed())
    @rule(data=st.data())
    def fork(self, data):
        parents = data.draw(st.lists(st.sampled_from(self.model.closed()), max_size=4))
        lengths = [data.draw(st.integers(0, len(self.model.tokens[p]))) for p in parents]
        self.model.fork(parents, lengths)

    @precondition(lambda self: self.model.closed())
    @rule(data=st.data())
    def truncate(self, data):
        handles = self.some(data, self.model.closed())
        self.model.truncate(handles, [data.draw(st.integers(0, len(self.model.tokens[h]))) for h in handles])

    @precondition(lambda self: self.model.closed())
    @rule(data=st.data())
    def free(self, data):
        self.model.free(data.draw(st.lists(st.sampled_from(self.model.closed()), unique=True, max_size=2)))

    @precondition(lambda self: self.model.closed())
    @rule(data=st.data())
    def reserve(self, data):
        handles = self.some(data, self.model.closed())
        n_new = [data.draw(st.integers(1, 2 * self.model.page_size + 1)) for _ in handles]
        before, need = self.model.snapshot(), self.model.table.pages_needed(handles, n_new)
        assert self.model.snapshot() == before
        if need > self.model.table.free_pages:
            with pytest.raises(CacheFull, match=f"needs {need} page"):
                self.model.table.reserve(handles, n_new)
            assert self.model.snapshot() == before
        else:
            self.model.reserve(handles, n_new)

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data())
    def remember(self, data):
        handle = data.draw(st.sampled_from(list(self.model.tokens)))
        self.model.remember(handle, data.draw(st.integers(0, len(self.model.tokens[handle]))))

    @precondition(lambda self: len(self.model.tokens) < 12)
    @rule(data=st.data())
    def match(self, data):
        known = sorted(self.model.remembered) or [()]
        self.model.match(data.draw(st.sampled_from(known)) + data.draw(st.sampled_from([(), (0,), (1, 0, 0)])))

    @precondition(lambda self: self.model.plans)
    @rule(data=st.data())
    def commit(self, data):
        self.model.commit(data.draw(st.sampled_from(list(self.model.plans))))

    @precondition(lambda self: self.model.plans)
    @rule(data=st.data())
    def rollback(self, data):
        self.model.rollback(data.draw(st.sampled_from(list(self.model.plans))))

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data(), call=st.sampled_from(list(BAD_CALLS)))
    def bad_call(self, data, call):
        pair = [data.draw(st.sampled_from(list(self.model.tokens))) for _ in range(2)]
        if call in ("fork beyond the end", "truncate beyond the end", "queries longer than the sequence"):
            return  # their lengths are made for one sequence of 13 tokens
        if call == "too few columns" and self.model.table.max_pages(pair[:1]) <= 2:
            return
        if call == "commit of an unknown plan" and 77 in self.model.plans:
            return
        before = self.model.snapshot()
        with pytest.raises(ValueError):
            BAD_CALLS[call](self.model.table, *pair)
        assert self.model.snapshot() == before

    @invariant()
    def every_sequence_reads_back_its_own_tokens(self):
        if hasattr(self, "model"):
            self.model.verify()

    def teardown(self):
        if hasattr(self, "model"):
            self.model.drain()


PageBooks.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestPageBooks = PageBooks.TestCase
