"""Writes the keys and values of new tokens into their slots.

A slot is page * page_size + offset. Slot -1 drops its token: a batch can be padded to a fixed size.
"""

from __future__ import annotations


def append_kv(key, value, k_cache, v_cache, slots):
    """In place. key, value (N, Hkv, D); caches (pages, page_size, Hkv, D); slots (N,) int64, distinct or -1."""
    page_size = k_cache.shape[1]
    kept = (slots >= 0).nonzero(as_tuple=True)[0]
    page, offset = slots[kept] // page_size, slots[kept] % page_size
    k_cache[page, offset] = key[kept]
    v_cache[page, offset] = value[kept]
