"""A packed batch as a model's attention layers see it, and the function that transformers calls in each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from fastpower.decoders.transformers.layout import ATTENTION
from fastpower.interfaces import interface


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
