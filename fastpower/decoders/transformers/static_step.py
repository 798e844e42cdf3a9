"""A decode step in buffers that never move, so that a GPU can replay it as one graph.

Rows are padded to a bucket of sizes. Everything a step needs from the host travels in one upload of a few kilobytes
into the bucket's input buffer; the step itself (embedding, layers, head, statistics, draws) reads only that buffer, the
weights, the cache and the tokens that the step before it drew, and leaves its results in one output buffer, copied to
pinned memory while the host does something else. On a GPU the step is a ``torch.cuda.CUDAGraph``, captured when a
bucket is first used or by ``warm``; on the CPU a replay is a call, and all else is the same code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpower import kernels
from fastpower.decoders.base import Draws, TokenDraws
from fastpower.decoders.cache import PagedCache, Plan
from fastpower.decoders.transfer import fill, join, places, split, views
from fastpower.decoders.transformers.device_forward import DeviceForward, Tokens
from fastpower.errors import CacheFull

Ints = NDArray[np.int64]

FEWEST_COLUMNS = 64  #: of the page table: 1,024 tokens in pages of 16
ROWS = (1, 2, 4, 8, *range(16, 257, 8))  #: buckets; beyond them multiples of 64


class Inputs(NamedTuple):
    """The input buffer of a bucket of B rows, C page-table columns and E exponents, part by part."""

    tokens: Any  #: (B,) int64, where ``drawn`` is 0
    drawn: Any  #: (B,) int64: 1 = feed what this row drew in the step before
    positions: Any  #: (B,) int64 of the tokens fed
    slots: Any  #: (B,) int64, −1 in padded rows
    keys: Any  #: (B,) int64
    counters: Any  #: (B,) int64: Philox counters of the draws
    exclude: Any  #: (B,) int64
    alpha: Any  #: (B,) float32
    exponents: Any  #: (E,) float32
    lengths: Any  #: (B,) int32, the new token included
    table: Any  #: (B, C) int32

    @classmethod
    def empty(cls, rows: int, columns: int, exponents: int) -> Inputs:
        """Host arrays of a batch of padding: nothing is written, one token is attended to."""
        whole = [np.zeros(rows, np.int64) for _ in range(7)]
        whole[3][:] = whole[6][:] = -1
        lengths, table = np.ones(rows, np.int32), np.zeros((rows, columns), np.int32)
        alpha = np.ones(rows, np.float32)
        tokens, drawn, positions, slots, keys, counters, exclude = whole
        numbers = (alpha, np.ones(exponents, np.float32), lengths, table)
        return cls(tokens, drawn, positions, slots, keys, counters, exclude, *numbers)


class _Graph:
    """One captured step. ``run`` fills ``outputs`` from ``inputs``; ``replay`` is ``run``, or its graph."""

    def __init__(self, size: tuple[int, int, int], device: torch.device) -> None:
        like = list(Inputs.empty(*size))
        self.buffer = torch.zeros(places(like)[-1], dtype=torch.uint8, device=device)
        self.inputs = Inputs(*views(self.buffer, like))
        self.like: list[Tensor] = []  # of the results, to take them apart
        self.output = torch.empty(0, dtype=torch.uint8, device=device)
        self.replay: Callable[[], None] = lambda: None


class StaticLaunch:
    """A step under way."""

    def __init__(self, graph: _Graph, rows: int) -> None:
        self._rows, self._like = rows, graph.like
        self._event: Any = None
        if graph.output.is_cuda:
            self._flat = torch.empty(graph.output.shape, dtype=torch.uint8, device="cpu", pin_memory=True)
            self._flat.copy_(graph.output, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(graph.output.device))
        else:
            self._flat = graph.output.clone()
        self._out: TokenDraws | None = None

    def result(self) -> TokenDraws:
        """The results of the rows that are not padding, waited for."""
        if self._out is None:
            if self._event is not None:
                self._event.synchronize()
            self._out = TokenDraws(*(part[: self._rows] for part in split(self._flat.numpy(), self._like)))
        return self._out


class StaticStep:
    """The steps of one model over one cache; see ``StepAhead``, whose ``launch`` this is."""

    def __init__(self, forward: DeviceForward, cache: PagedCache, max_length: int, backend: str) -> None:
        self._forward, self._cache, self._backend = forward, cache, backend
        self._columns = -(-max_length // cache.page_size)
        self._graphs: dict[tuple[int, int, int], _Graph] = {}
        self._refused: set[tuple[int, int, int]] = set()  # buckets for which the device has no room
        self._last = torch.zeros(0, dtype=torch.int64, device=forward.device)
        self._latest: Any = None
        self.replays = 0
        forward.grow(max_length)  # before any capture: a graph holds the address of the tables

    @property
    def buckets(self) -> list[tuple[int, int, int]]:
        """(rows, page-table columns, exponents) of every graph so far."""
        return sorted(self._graphs)

    def warm(self, rows: int, exponents: int = 1) -> None:
        """Capture the buckets up to so many rows, for the shortest page table.

        Raises:
            CacheFull: They do not fit.
        """
        for bucket in (size for size in ROWS if size <= bucket_of(rows)):
            self._graph((bucket, min(FEWEST_COLUMNS, self._columns), exponents))

    def launch(self, sequences: Ints, tokens: Ints | None, draws: Draws, before: Any) -> StaticLaunch:
        """Start a step that appends one token to every sequence and draws once for each.

        Args:
            sequences: Handles.
            tokens: One for each; None: what row i of ``before`` drew.
            draws: One for each row.
            before: The step before this one.

        Raises:
            CacheFull: No room, in the cache or for a graph of so many rows; nothing has changed.
            UnknownSequence: A handle that is not live; nothing has changed.
        """
        rows = len(sequences)
        if tokens is None and before is not self._latest:
            tokens = np.maximum(before.result().token, 0)
        plan = self._cache.reserve(sequences, np.ones(rows, np.int64))
        try:
            longest = int(plan.positions.max()) + 1
            needed = max(FEWEST_COLUMNS, 1 << (-(-longest // self._cache.page_size) - 1).bit_length())
            size = (bucket_of(rows), min(needed, self._columns), len(draws.exponents))
            graph = self._graph(size)
            self._upload(graph, size, plan, sequences, tokens, draws)
            graph.replay()
            launched = StaticLaunch(graph, rows)
        except BaseException:
            self._cache.rollback(plan)
            raise
        self._cache.commit(plan)
        self._latest = launched
        self.replays += 1
        return launched

    # ----------------------------------------------------------------------------------------------- internals

    def _upload(
        self, graph: _Graph, size: tuple[int, int, int], plan: Plan, sequences: Ints, tokens: Ints | None, draws: Draws
    ) -> None:
        rows = len(sequences)
        inputs = Inputs.empty(*size)
        if tokens is None:
            inputs.drawn[:rows] = 1
        else:
            inputs.tokens[:rows] = tokens
        inputs.positions[:rows], inputs.slots[:rows] = plan.positions, plan.slots
        inputs.keys[:rows] = np.ascontiguousarray(draws.keys, np.uint64).view(np.int64)
        inputs.counters[:rows], inputs.exclude[:rows] = draws.positions, draws.exclude
        inputs.alpha[:rows], inputs.exponents[:] = draws.alpha, draws.exponents
        inputs.table[:rows, : plan.page_table.shape[1]], inputs.lengths[:rows] = plan.page_table, plan.lengths
        # A fresh pinned buffer each time (torch caches them): the last one may still be on its way.
        staging = torch.empty(graph.buffer.shape, dtype=torch.uint8, device="cpu", pin_memory=graph.buffer.is_cuda)
        fill(staging, inputs)
        graph.buffer.copy_(staging, non_blocking=True)

    def _graph(self, size: tuple[int, int, int]) -> _Graph:
        graph = self._graphs.get(size)
        if graph is not None:
            return graph
        if size in self._refused:
            raise CacheFull(f"no room on {self._forward.device} for a graph of {size[0]} rows")
        if self._last.numel() < size[0]:
            self._grow(size[0])
        try:
            graph = _Graph(size, self._forward.device)
            with torch.inference_mode():
                self._capture(graph, size[0])
        except torch.OutOfMemoryError:
            self._refused.add(size)
            warnings.warn(
                f"no room on {self._forward.device} for a graph of {size[0]} rows: steps of that size run eagerly, one "
                "kernel after the other. A smaller cache_tokens leaves room, graphs=False asks for none",
                stacklevel=2,
            )
            raise CacheFull(f"no room on {self._forward.device} for a graph of {size[0]} rows") from None
        self._graphs[size] = graph
        return graph

    def _grow(self, rows: int) -> None:
        """Room for the tokens of more rows. Graphs hold the old address, so they are captured again when needed."""
        last = torch.zeros(max(rows, 256), dtype=torch.int64, device=self._forward.device)
        last[: self._last.numel()] = self._last
        self._last = last
        self._graphs.clear()

    def _capture(self, graph: _Graph, rows: int) -> None:
        each = torch.arange(rows + 1, dtype=torch.int32, device=graph.buffer.device)
        row = each[:-1].long()

        def run() -> None:
            self._run(graph, each, row, rows)

        graph.buffer.copy_(self._padding(graph, rows))
        if not graph.buffer.is_cuda:
            graph.replay = run
            graph.like = [t.clone() for t in self._results(graph, each, row, rows)]
            graph.output = join(graph.like)
            return
        device = graph.buffer.device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side):  # kernels are compiled and libraries chosen here
            for _ in range(2):
                graph.like = [t.clone() for t in self._results(graph, each, row, rows)]
            graph.output = join(graph.like)
        torch.cuda.current_stream(device).wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(captured):
            run()
        graph.replay = captured.replay

    def _padding(self, graph: _Graph, rows: int) -> Tensor:
        like = Inputs.empty(rows, graph.inputs.table.shape[1], len(graph.inputs.exponents))
        flat = torch.zeros(graph.buffer.shape, dtype=torch.uint8, device="cpu")
        fill(flat, like)
        return flat

    def _run(self, graph: _Graph, each: Tensor, row: Tensor, rows: int) -> None:
        results = self._results(graph, each, row, rows)
        self._last[:rows].copy_(results[0])
        graph.output.copy_(join(list(results)))

    def _results(self, graph: _Graph, each: Tensor, row: Tensor, rows: int) -> tuple[Tensor, ...]:
        given = graph.inputs
        ids = torch.where(given.drawn != 0, self._last[:rows].clamp(min=0), given.tokens)
        tokens = Tokens(ids, given.positions, given.slots, given.table, each, given.lengths)
        states = self._forward.hidden(self._cache.k, self._cache.v, tokens)
        draw = (given.alpha, given.exponents, row, given.keys, given.counters, given.exclude)
        return tuple(kernels.sample_tokens(self._forward.logits(states), *draw, backend=self._backend))


def bucket_of(rows: int) -> int:
    """Rows that a batch is padded to."""
    return next((size for size in ROWS if size >= rows), -(-rows // 64) * 64)
