"""Copies the first tokens of pages to other pages, in all layers: the copy in copy-on-write."""

from __future__ import annotations


def copy_pages(k_cache, v_cache, source, target, tokens):
    """In place. Caches (layers, pages, page_size, Hkv, D); source, target, tokens (C,) int64.

    Targets are distinct and no target is a source, so the order of the copies does not matter.
    """
    for s, t, n in zip(source.tolist(), target.tolist(), tokens.tolist(), strict=True):
        for cache in (k_cache, v_cache):
            cache[:, t, :n] = cache[:, s, :n]
