"""Rows of work as one packed ragged batch with its pages reserved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpower.decoders.base import Work
from fastpower.decoders.cache import PagedCache, SharedRuns
from fastpower.decoders.integers import integers


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
    shared: SharedRuns | None = None  #: rows that begin with the same pages; None if they are not to be looked for


class Packer:
    """Makes packed batches for one cache."""

    def __init__(self, cache: PagedCache, vocab_size: int, max_length: int) -> None:
        self._cache, self._vocab_size, self._max_length = cache, vocab_size, max_length

    @contextmanager
    def reserved(self, work: Sequence[Work]) -> Iterator[PackedBatch]:
        """The batch, with pages for all its tokens: committed at the end, rolled back if anything raises in between.

        Raises:
            CacheFull: No room; nothing has changed, as after every other error.
            UnknownSequence: A handle that is not live.
            PromptTooLong: A row would exceed ``max_length``.
            ValueError: An empty batch or row, a sequence twice, a token outside the vocabulary.
            TypeError: A token or handle that is not whole.
        """
        if not work:
            raise ValueError("work is empty: give at least one row")
        n_new = np.array([len(row.tokens) for row in work], np.int64)
        if n_new.min() == 0:
            raise ValueError(f"row {int(n_new.argmin())} of work has no tokens: give at least one")
        starts = np.zeros(len(work) + 1, np.int32)
        np.cumsum(n_new, out=starts[1:])
        tokens = integers("tokens", [*chain.from_iterable(row.tokens for row in work)])
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise ValueError(f"token ids must lie in [0, {self._vocab_size}), got {tokens.min()} … {tokens.max()}")
        sequences = integers("sequences", [row.sequence for row in work])
        plan = self._cache.reserve(sequences, n_new, self._max_length)
        try:
            yield PackedBatch(
                tokens, plan.positions, plan.slots, sequences, n_new, starts, plan.lengths, plan.page_table, plan.shared
            )
        except BaseException:
            self._cache.rollback(plan)
            raise
        self._cache.commit(plan)
