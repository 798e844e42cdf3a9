"""What a decoder needs beside the model (room for keys and values), what a step reads of it, what ends an answer."""

from __future__ import annotations

from typing import Any

from fastpower.decoders.cache import PagedCache
from fastpower.decoders.transformers.layout import KVLayout
from fastpower.models import memory


def paged_cache(layout: KVLayout, cache_tokens: int | None, memory_fraction: float, page_size: int) -> PagedCache:
    """A cache of that many tokens, or of that fraction of the memory that is free (at most 64 full contexts).

    Raises:
        OutOfMemory: It does not fit; nothing is allocated.
    """
    per_token = 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * layout.dtype.itemsize
    if cache_tokens is None:
        affordable = int(memory.available(layout.device) * memory_fraction) // per_token
        cache_tokens = max(min(affordable, 64 * layout.max_length, 2**31 - 1 - page_size), page_size)
    pages = -(-cache_tokens // page_size)
    memory.require(
        pages * page_size * per_token,
        f"a K/V cache of {pages * page_size} tokens (pages: {pages})",
        "give a smaller cache_tokens or a narrower dtype, or free memory",
        layout.device,
    )
    return PagedCache(
        layout.num_layers,
        layout.num_kv_heads,
        layout.head_dim,
        page_size=page_size,
        cache_tokens=cache_tokens,
        dtype=layout.dtype,
        device=layout.device,
    )


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Stop tokens of the generation config and of the tokenizer; a model may have none."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(found) if isinstance(found, (list, tuple)) else {found}
    ids.add(getattr(tokenizer, "eos_token_id", None))
    return frozenset(int(token) for token in ids if token is not None)


def weight_bytes(model: Any) -> int:
    """Bytes of weights that a step reads: those that multiply; an embedding of its own is only looked up."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    own = model.get_output_embeddings().weight is not embedding
    return int(weights - (embedding.nbytes if own else 0))
