"""PagedCache: the K/V tensors of every layer in pages, and the books that say which sequence holds which page.

The books (``fastpower._C.SequenceTable``) know nothing of tensors; this file adds the tensors and runs the page copies
that a reservation asks for. Nothing here costs time proportional to the length of a sequence, except exports.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastpower import _C, kernels
from fastpower.decoders.integers import integers
from fastpower.decoders.transfer import to_device
from fastpower.kernels.arguments import whole_number

Handles = Sequence[int] | NDArray[np.int64]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


#: the ``shared`` argument of ``paged_attention``
SharedRuns = tuple[NDArray[np.int32], NDArray[np.int32]]
#: of a reservation without one: more than the books can hold
_NO_LIMIT = 2**62


class Copies(NamedTuple):
    """Page copies of a plan; C of them. No target is a source, all targets are distinct."""

    source: NDArray[np.int64]  #: (C,) page read
    target: NDArray[np.int64]  #: (C,) page written
    tokens: NDArray[np.int64]  #: (C,) how many slots, from the first, are copied


class Plan(NamedTuple):
    """An open reservation: N = Σ n_new slots to write, rows one after the other in the order asked for."""

    id: int  #: of the books
    sequences: NDArray[np.int64]  #: (S,)
    n_new: NDArray[np.int64]  #: (S,)
    slots: NDArray[np.int64]  #: (N,) page · page_size + offset of each new token
    positions: NDArray[np.int64]  #: (N,) position of each new token in its sequence
    copies: Copies  #: already done when ``PagedCache.reserve`` returns
    lengths: NDArray[np.int32]  #: (S,) tokens of each sequence, new ones included
    page_table: NDArray[np.int32]  #: (S, max_pages) pages of each sequence, new ones included; 0 behind the last
    #: consecutive rows that begin with the same pages: starts (G+1,), pages (G,), int32. Rows starts[g] … starts[g+1]−1
    #: share their first pages[g] pages, all full and before the new tokens (0: a row on its own); None for a single row
    shared: SharedRuns | None


class PagedCache:
    """Keys and values of many sequences that share what they have in common.

    ``k`` and ``v`` are ``(num_layers, num_pages, page_size, num_kv_heads, head_dim)`` on ``device``, not initialised:
    memory of the CPU is taken from the system when a page is first written. Exactly one of ``num_pages``,
    ``cache_tokens`` and ``memory_bytes`` (of ``k`` and ``v`` together) sets the size.

    Sequences are int64 handles that are never given out twice. A page is written only by its sole owner: a sequence
    that appends into a partly filled page held by others first gets its own copy of that page. Every method does all
    of its work or raises with nothing changed.

    Raises:
        UnknownSequence: By every method, for a handle that is not live.
        ValueError: By every method, for a sequence that is a row of an open plan.
        TypeError: By every method, for a number that is not whole.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        page_size: int = 16,
        num_pages: int | None = None,
        cache_tokens: int | None = None,
        memory_bytes: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        for name, value in (
            ("num_layers", num_layers),
            ("num_kv_heads", num_kv_heads),
            ("head_dim", head_dim),
            ("page_size", page_size),
        ):
            if whole_number(name, value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        sizes = {"num_pages": num_pages, "cache_tokens": cache_tokens, "memory_bytes": memory_bytes}
        given = {name: whole_number(name, value) for name, value in sizes.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of num_pages, cache_tokens, memory_bytes; got {given or 'none'}")
        #: bytes of K and V of one token, all layers
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
        if num_pages is None:
            if cache_tokens is not None:
                num_pages = -(-cache_tokens // page_size)
            elif memory_bytes is not None:
                num_pages = memory_bytes // (self.bytes_per_token * page_size)
        if num_pages is None or num_pages < 1:
            raise ValueError(
                f"{given} is less than one page ({page_size} tokens, {self.bytes_per_token * page_size} bytes)"
            )
        self._books = _C.SequenceTable(num_pages, page_size)
        self.device = torch.device(device)
        self.dtype = dtype
        self.backend = backend  #: of ``copy_pages``
        self.num_pages = num_pages
        self.page_size = page_size
        shape = (num_layers, num_pages, page_size, num_kv_heads, head_dim)
        self.k = torch.empty(shape, dtype=dtype, device=self.device)
        self.v = torch.empty(shape, dtype=dtype, device=self.device)

    # ------------------------------------------------------------------------------------------------ sequences

    def add(self) -> int:
        """A new empty sequence."""
        return int(self._books.add())

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that shares the first ``length`` tokens, 0 ≤ length ≤ length(sequence); nothing is copied."""
        return int(self._books.fork(whole_number("sequence", sequence), whole_number("length", length)))

    def fork_many(self, sequences: Handles, lengths: Handles) -> NDArray[np.int64]:
        """``fork`` for each pair, in one call; a sequence may be forked many times."""
        forks: NDArray[np.int64] = self._books.fork_many(integers("sequences", sequences), integers("lengths", lengths))
        return forks

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` tokens; whole pages behind them are given back, nothing is copied."""
        self._books.truncate(whole_number("sequence", sequence), whole_number("length", length))

    def free(self, sequence: int) -> None:
        """Give a sequence back; its handle is unknown from now on."""
        self._books.free(whole_number("sequence", sequence))

    def free_many(self, sequences: Handles) -> None:
        """``free`` for each of them (no repeats), in one call."""
        self._books.free_many(integers("sequences", sequences))

    def length(self, sequence: int) -> int:
        """Tokens held; reserved ones are not counted before ``commit``."""
        return int(self._books.length(whole_number("sequence", sequence)))

    def lengths(self, sequences: Handles) -> NDArray[np.int64]:
        """``length`` of each of them."""
        lengths: NDArray[np.int64] = self._books.lengths(integers("sequences", sequences))
        return lengths

    # ------------------------------------------------------------------------------- reserve, commit, rollback

    def reserve(self, sequences: Handles, n_new: Handles, max_length: int | None = None) -> Plan:
        """Room for ``n_new[i]`` ≥ 1 more tokens of ``sequences[i]``, all or nothing; page copies are done.

        The plan carries what a forward over these rows needs: page tables, lengths and shared runs.

        The caller writes K/V of all layers to ``plan.slots`` and then calls ``commit`` (lengths grow) or ``rollback``
        (everything as before, even if some slots were written). Until then these sequences cannot be forked, truncated
        or freed. Several plans over different sequences may be open.

        Raises:
            CacheFull: Not enough pages.
            ValueError: A sequence named twice.
            PromptTooLong: A sequence that would have more than ``max_length`` tokens.
        """
        sequences, n_new = integers("sequences", sequences), integers("n_new", n_new)
        limit = _NO_LIMIT if max_length is None else whole_number("max_length", max_length)
        step = self._books.reserve_step(sequences, n_new, limit)
        identity, slots, positions, source, target, tokens, lengths, page_table, shared = step
        copies = Copies(source, target, tokens)
        try:
            if len(source):
                there = to_device(copies, self.device)  # one upload that nothing waits for
                kernels.copy_pages(self.k, self.v, *there, backend=self.backend)
        except BaseException:
            self._books.rollback(identity)
            raise
        return Plan(identity, sequences, n_new, slots, positions, copies, lengths, page_table, shared)

    def commit(self, plan: Plan) -> None:
        """The slots of ``plan`` hold their tokens now.

        Raises:
            ValueError: The plan is not open.
        """
        self._books.commit(plan.id)

    def rollback(self, plan: Plan) -> None:
        """Forget ``plan``: pages, lengths and contents as before.

        Raises:
            ValueError: The plan is not open.
        """
        self._books.rollback(plan.id)

    def pages_needed(self, sequences: Handles, n_new: Handles) -> int:
        """Pages that ``reserve`` of the same arguments would take, copies included. Changes nothing."""
        return int(self._books.pages_needed(integers("sequences", sequences), integers("n_new", n_new)))

    # -------------------------------------------------------------------------------------------- prefix reuse

    def remember(self, sequence: int, tokens: Handles) -> None:
        """Keep the full pages of ``tokens``, the first tokens that ``sequence`` holds, for sequences to come.

        They stay when the sequence is freed, until ``reserve`` needs their pages (least recently used first). What is
        remembered already is not kept twice.

        Raises:
            ValueError: More tokens than the sequence holds, or pages of it that were remembered with other tokens.
        """
        self._books.remember(whole_number("sequence", sequence), integers("tokens", tokens))

    def match(self, tokens: Handles) -> tuple[int, int]:
        """A new sequence that begins with the longest remembered prefix of ``tokens``, in whole pages.

        To have logits, feed at least one more token: match ``tokens[:-1]``.

        Returns:
            (sequence, length); empty and 0 if there is none.
        """
        sequence, length = self._books.match(integers("tokens", tokens))
        return int(sequence), int(length)

    def forget(self) -> None:
        """Give back every remembered page that no sequence holds."""
        self._books.forget()

    def forget_all(self) -> None:
        """Forget every remembered prefix: nothing can be matched any more, and sequences keep the pages they hold."""
        self._books.forget_all()

    # ---------------------------------------------------------------------------------------- for the kernels

    def page_tables(self, sequences: Handles) -> tuple[torch.Tensor, torch.Tensor]:
        """``page_table (S, max_pages)`` and ``lengths (S,)``, int32, on the cache's device.

        Reserved tokens count. Entries behind a sequence's last page are 0, a page that exists.
        """
        sequences = integers("sequences", sequences)
        table = np.empty((len(sequences), max(1, self._books.max_pages(sequences))), np.int32)
        lengths = np.empty(len(sequences), np.int32)
        self._books.page_tables(sequences, table, lengths)
        return torch.from_numpy(table).to(self.device), torch.from_numpy(lengths).to(self.device)

    # ---------------------------------------------------------------------------------------------- inspection

    @property
    def free_pages(self) -> int:
        """Pages that a reservation can have: free ones, and cached ones that no sequence holds."""
        return int(self._books.free_pages)

    def stats(self) -> dict[str, int]:
        """Sizes of now.

        Pages: ``pages`` = ``live_pages`` (of sequences) + ``cached_pages`` (only remembered) + ``free_pages``;
        ``shared_pages`` are live and held more than once. ``sequences``, ``open_plans``. Tokens: ``tokens`` is the sum
        of all lengths, ``distinct_tokens`` counts shared ones once, ``free_tokens`` fit into free and cached pages.
        Bytes of K and V: ``bytes`` in all, ``live_bytes`` in live pages, ``cached_bytes`` in cached ones.
        """
        stats: dict[str, int] = self._books.stats()
        page_bytes = self.bytes_per_token * self.page_size
        stats["free_tokens"] = (stats["free_pages"] + stats["cached_pages"]) * self.page_size
        stats["bytes"] = stats["pages"] * page_bytes
        stats["live_bytes"] = stats["live_pages"] * page_bytes
        stats["cached_bytes"] = stats["cached_pages"] * page_bytes
        return stats

    def check(self) -> None:
        """Recount every reference from scratch and compare.

        Raises:
            RuntimeError: Something does not fit; it is named.
        """
        self._books.check()
