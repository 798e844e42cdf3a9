"""The decode step through ``torch.compile``: one graph per bucket of sizes, nothing of the step outside it.

A step in which every row gets one token is padded to a power of two of rows and of page-table columns, so that few
graphs serve all steps; padded rows write nothing (slot −1) and their logits are cut off. The graph holds the model and
its attention (registered operators, opaque to the compiler), waits for nothing on the host, and finds the caches at
addresses that never change: what CUDA graphs need (``mode="reduce-overhead"`` on a GPU). Prefills run uncompiled.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpower import kernels
from fastpower.decoders.cache import PagedCache
from fastpower.decoders.transfer import to_device
from fastpower.decoders.transformers.attention import Step
from fastpower.interfaces import require

_FEWEST_COLUMNS = 64  # 1,024 tokens in pages of 16


class CompiledDecode:
    """Compiled decode steps of one model over one cache.

    Args:
        model: Of transformers, its attention set to the paged one.
        cache: Where keys and values go.
        backend: Of the kernels.
        torch_backend: Of ``torch.compile``: "inductor", or "eager" and "aot_eager" to see what is captured.
    """

    def __init__(self, model: Any, cache: PagedCache, backend: str, torch_backend: str) -> None:
        self._model, self._cache, self._torch_backend = model, cache, torch_backend
        # One tensor per layer: the compiler takes each for itself, and an append to one layer concerns no other.
        self._k, self._v = list(cache.k.unbind(0)), list(cache.v.unbind(0))
        mark_static_address = require(torch._dynamo, "mark_static_address", "torch")
        for layer in (*self._k, *self._v):
            mark_static_address(layer)
        self._append_kv = partial(kernels.append_kv, backend=backend)
        self._paged_attention = partial(kernels.paged_attention, backend=backend)
        self._graphs: dict[tuple[int, int], Callable[..., Tensor]] = {}

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(rows, page-table columns) of every graph so far."""
        return sorted(self._graphs)

    def __call__(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        table: NDArray[np.int32],
        lengths: NDArray[np.int32],
    ) -> Tensor:
        """(S, V) logits of a step of S rows with one token each; everything (S,) but ``table`` (S, max_pages)."""
        rows, columns = table.shape
        bucket = (_power_of_two(rows), max(_FEWEST_COLUMNS, _power_of_two(columns)))
        padding = bucket[0] - rows
        padded_table = np.zeros(bucket, np.int32)
        padded_table[:rows, :columns] = table
        arrays = to_device(
            [
                np.pad(tokens, (0, padding))[None],
                np.pad(positions, (0, padding))[None],
                np.pad(slots, (0, padding), constant_values=-1),
                padded_table,
                np.pad(lengths, (0, padding), constant_values=1),
                np.arange(bucket[0] + 1, dtype=np.int32),
            ],
            self._cache.device,
        )
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._graphs[bucket] = self._compile(bucket)
        return graph(self._model, self._append_kv, self._paged_attention, self._k, self._v, *arrays)[:rows]

    def _compile(self, bucket: tuple[int, int]) -> Callable[..., Tensor]:
        # Graphs are kept per code object, and a code object may have few of them: each bucket gets its own.
        name = f"decode_{bucket[0]}_{bucket[1]}"
        own = types.FunctionType(_decode.__code__.replace(co_name=name), globals(), name)
        graphs = self._cache.device.type == "cuda" and self._torch_backend == "inductor"
        mode = "reduce-overhead" if graphs else None
        return torch.compile(own, fullgraph=True, dynamic=False, backend=self._torch_backend, mode=mode)


def _decode(
    model: Any,
    append_kv: Callable[..., None],
    paged_attention: Callable[..., Tensor],
    k: list[Tensor],
    v: list[Tensor],
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    table: Tensor,
    lengths: Tensor,
    starts: Tensor,
) -> Tensor:
    step = Step(k, v, slots, table, starts, lengths, None, append_kv, paged_attention)
    out = model(input_ids=ids, position_ids=positions, use_cache=False, fastpower_step=step)
    logits: Tensor = out.logits[0]
    return logits


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
