"""A packed batch as a model's attention layers see it, and the function that transformers calls in each of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpower.decoders.transformers.layout import ATTENTION
from fastpower.interfaces import interface


def attention_options(
    backend: str,
    starts: Tensor,
    lengths: Tensor,
    shared: tuple[Tensor, Tensor] | None,
    *,
    queries: int,
    dtype: torch.dtype,
    group: int,
    head_dim: int,
    page_size: int,
    max_pages: int,
    windows: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of ``paged_attention`` for all layers of a step: those without a window, and those with one.

    For Triton the tiles of the queries are planned here, once, where every layer would do it for itself.

    Args:
        backend: Of the kernels.
        starts: (S+1,) int32, the ``query_starts`` of ``paged_attention``.
        lengths: (S,) int32.
        shared: As of ``paged_attention``; not used where there is a window.
        queries: The most that a sequence has.
        dtype: Of the queries.
        group: Query heads per K/V head.
        head_dim: Of queries, keys and values.
        page_size: Tokens per page.
        max_pages: Columns of the page table.
        windows: Whether any layer has one (for those nothing is shared).
    """
    if backend != "triton":
        return {"shared": shared}, {"shared": shared}
    tiles = importlib.import_module("fastpower.kernels.triton.attention_tiles")
    split = importlib.import_module("fastpower.kernels.triton.paged_attention").SPLIT
    sizes = {"queries": queries, "HG": group, "M": tiles.tile(dtype, head_dim)[0], "split": split}
    if max_pages * page_size <= split:
        shared = None  # there is one split, and nothing to be read once
    plan = partial(tiles.plan_tiles, starts, lengths, page_size=page_size, **sizes)
    plain = plan(shared=shared)
    return {"plan": plain}, {"plan": plan() if windows and shared is not None else plain}


class Step(NamedTuple):
    """One packed batch as the attention layers see it; passed through ``model.forward`` as a keyword."""

    k: Tensor | Sequence[Tensor]  #: L layers of (pages, page_size, Hkv, D)
    v: Tensor | Sequence[Tensor]
    slots: Tensor  #: (N,) int64
    page_table: Tensor  #: (S, max_pages) int32
    query_starts: Tensor  #: (S+1,) int32
    lengths: Tensor  #: (S,) int32, new tokens included
    shared: tuple[Tensor, Tensor] | None
    # The backend's own functions: shapes are those that kv_layout has seen, and the façade would check them once more
    # in every layer of every step.
    append_kv: Callable[..., None]
    paged_attention: Callable[..., Tensor]

    @classmethod
    def of(
        cls,
        k: Tensor,
        v: Tensor,
        pages: Sequence[Tensor],
        append_kv: Callable[..., None],
        paged_attention: Callable[..., Tensor],
    ) -> Step:
        """A step from its tensors on the device.

        Args:
            k: (layers, pages, page_size, kv_heads, head_dim).
            v: Like ``k``.
            pages: Slots, page table, query starts, lengths; where prefixes are shared, groups' starts and pages.
            append_kv: The backend's.
            paged_attention: The backend's.
        """
        slots, table, starts, lengths, *groups = pages
        shared = (groups[0], groups[1]) if groups else None
        return cls(k, v, slots, table, starts, lengths, shared, append_kv, paged_attention)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: Any, window: Any, softcap: Any, **kw: Any
    ) -> Tensor:
        layer = module.layer_idx
        k, v = self.k[layer], self.v[layer]
        # (1, H, N, D) → (N, H, D): models transpose (N, H, D) to get here, so nothing moves
        self.append_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k, v, self.slots)
        return self.paged_attention(
            query[0].transpose(0, 1),
            k,
            v,
            self.page_table,
            self.query_starts,
            self.lengths,
            scale=scaling,
            window=window or 0,
            softcap=softcap or 0.0,
            shared=self.shared,
        )[None]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    fastpower_step: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer."""
    return fastpower_step.attend(module, query, key, value, scaling, sliding_window, softcap, **kwargs), None


@lru_cache(maxsize=1)
def register_attention() -> None:
    """Make ATTENTION known to transformers."""
    with interface("transformers"):
        from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
