"""Rows of work as one packed ragged batch with its pages reserved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Work
from fastpower.decoders.cache import PagedCache
from fastpower.errors import PromptTooLong


class PackedBatch(NamedTuple):
    """S rows with N tokens in all, one row after the other; everything on the host."""

    tokens: NDArray[np.int64]  #: (N,)
    positions: NDArray[np.int64]  #: (N,) of the tokens in their sequences
    slots: NDArray[np.int64]  #: (N,) where their K/V go
    sequences: NDArray[np.int64]  #: (S,)
    n_new: NDArray[np.int64]  #: (S,)
    starts: NDArray[np.int32]  #: (S+1,) row s is tokens starts[s] … starts[s+1] − 1
    lengths: NDArray[np.int32]  #: (S,) tokens of each sequence, new ones included
    page_table: NDArray[np.int32]  #: (S, max_pages)


class Packer:
    """Makes packed batches for one cache; keeps the buffer that page tables are exported to."""

    def __init__(self, cache: PagedCache, vocab_size: int, max_length: int) -> None:
        self._cache, self._vocab_size, self._max_length = cache, vocab_size, max_length
        self._table = np.empty(256, np.int32)

    @contextmanager
    def reserved(self, work: Sequence[Work]) -> Iterator[PackedBatch]:
        """The batch, with pages for all its tokens: committed at the end, rolled back if anything raises in between.

        Raises CacheFull, UnknownSequence, PromptTooLong, ValueError (empty batch or row, a sequence twice, a token
        outside the vocabulary); nothing has changed then. ``page_table`` is valid until the next batch is made.
        """
        if not work:
            raise ValueError("work is empty: give at least one row")
        n_new = np.array([len(row.tokens) for row in work], np.int64)
        if n_new.min() == 0:
            raise ValueError(f"row {int(n_new.argmin())} of work has no tokens: give at least one")
        starts = np.zeros(len(work) + 1, np.int32)
        np.cumsum(n_new, out=starts[1:])
        tokens = np.fromiter(chain.from_iterable(row.tokens for row in work), np.int64, int(starts[-1]))
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise ValueError(f"token ids must lie in [0, {self._vocab_size}), got {tokens.min()} … {tokens.max()}")
        sequences = np.array([row.sequence for row in work], np.int64)
        longest = int((self._cache.lengths(sequences) + n_new).max())
        if longest > self._max_length:
            raise PromptTooLong(
                f"a sequence would have {longest} tokens; the model's context is {self._max_length}: shorten the "
                "prompt or the horizon"
            )
        plan = self._cache.reserve(sequences, n_new)
        try:
            lengths = np.empty(len(work), np.int32)
            table = self._buffer(len(work), -(-longest // self._cache.page_size))
            self._cache.page_tables_into(sequences, table, lengths)
            yield PackedBatch(tokens, plan.positions, plan.slots, sequences, n_new, starts, lengths, table)
        except BaseException:
            self._cache.rollback(plan)
            raise
        self._cache.commit(plan)

    def _buffer(self, rows: int, columns: int) -> NDArray[np.int32]:
        if self._table.size < rows * columns:
            self._table = np.empty(2 * rows * columns, np.int32)
        return self._table[: rows * columns].reshape(rows, columns)
