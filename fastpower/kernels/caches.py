"""What operators over pages ask of K/V caches: (…, pages, page_size, Hkv, D), pages contiguous."""

from __future__ import annotations

from torch import Tensor


def check_pages(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    """Refuse pages that are not contiguous, or hold no token.

    Raises:
        ValueError: They are such.
    """
    sizes = page_size, heads, dim = k_cache.shape[-3:]
    dense = (heads * dim, dim, 1)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if page_size and cache.is_contiguous():
            continue
        strides = cache.stride()[-3:]
        if page_size == 0 or any(n > 1 and have != want for n, have, want in zip(sizes, strides, dense, strict=True)):
            raise ValueError(
                f"{op}: {name} needs contiguous pages (page_size, Hkv, D) of at least one token, "
                f"got shape {tuple(cache.shape)} and strides {cache.stride()}"
            )


def overlaps(cache: Tensor) -> bool:
    """Whether pages (or layers of pages) share memory, as those of an expanded tensor do."""
    *outer, page, heads, dim = cache.shape
    inner = page * heads * dim
    for size, stride in sorted(zip(outer, cache.stride()[: len(outer)], strict=True), key=lambda pair: abs(pair[1])):
        if size > 1 and abs(stride) < inner:
            return True
        inner = max(inner, abs(stride) * (size - 1) + inner)
    return False


def check_written(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    """Refuse caches that cannot be written because their pages share memory.

    Raises:
        ValueError: They do.
    """
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if not cache.is_contiguous() and overlaps(cache):
            raise ValueError(
                f"{op}: pages of {name} share memory (shape {tuple(cache.shape)}, strides {cache.stride()}), so that "
                "writing one would change others; use clone() of an expanded tensor"
            )
