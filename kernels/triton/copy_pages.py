"""Copy the first tokens of cache pages to other pages, all layers and both caches in one launch: copy-on-write.

A page of one layer is a contiguous run of page_size · Hkv · D elements, and its first τ tokens are the first
τ · Hkv · D of them, so copy i moves 2 · L contiguous runs:

    cache[l, target_i, :τ_i]  ←  cache[l, source_i, :τ_i]        for every layer l, for K and for V

Targets are distinct and no target is a source, hence copies do not depend on each other and may run in any order.
Elements are moved as integers of the widest size that divides a page (the bits are not looked at, so every dtype is
copied exactly); the floor is memory bandwidth, 2 · 2 · L · τ · Hkv · D · itemsize bytes per copy. Programs beyond a
copy's last token return at once. A negative source or target copies nothing, so that a plan of fixed size in a
captured graph can be partly empty. Addresses are 64-bit.
"""

import torch

import triton
import triton.language as tl

from .device import on_its_device

BLOCK = 2048
WIDE = torch.int32  # cache elements are moved as words of this type where a token's row has a whole number of them


@triton.jit
def copy_kernel(
    k_cache_ptr,  # (L, P, token_size · page_size) words
    v_cache_ptr,
    source_ptr,  # (C,) int64
    target_ptr,
    tokens_ptr,
    k_stride_layer,
    k_stride_page,
    v_stride_layer,
    v_stride_page,
    token_size,  # words per token
    BLOCK: tl.constexpr,
):
    """Program (copy, 2 · layer + (0 for K, 1 for V), part of the page)."""
    i_copy = tl.program_id(0)
    i_layer = (tl.program_id(1) // 2).to(tl.int64)
    source = tl.load(source_ptr + i_copy)
    target = tl.load(target_ptr + i_copy)
    size = tl.load(tokens_ptr + i_copy) * token_size
    start = tl.program_id(2) * BLOCK
    if (start >= size) | (source < 0) | (target < 0):
        return
    o = start + tl.arange(0, BLOCK)
    if tl.program_id(1) % 2 == 0:
        p_layer = k_cache_ptr + i_layer * k_stride_layer
        b_words = tl.load(p_layer + source * k_stride_page + o, mask=o < size)
        tl.store(p_layer + target * k_stride_page + o, b_words, mask=o < size)
    else:
        p_layer = v_cache_ptr + i_layer * v_stride_layer
        b_words = tl.load(p_layer + source * v_stride_page + o, mask=o < size)
        tl.store(p_layer + target * v_stride_page + o, b_words, mask=o < size)


@on_its_device
def copy_pages(k_cache, v_cache, source, target, tokens):
    """Copy in place; the contract is that of ``fastpower.kernels.copy_pages``.

    Caches (L, P, page_size, H, D) whose pages are contiguous; source, target, tokens (C,) int64, targets distinct and
    no target a source, negative source or target = skip. Arguments are trusted.
    """
    L, _, page_size, H, D = k_cache.shape
    C = source.shape[0]
    if C == 0 or L == 0 or H * D == 0:
        return
    words = [cache.flatten(2) for cache in (k_cache, v_cache)]
    ratio = 4 // k_cache.element_size()
    sizes = [n for cache in words for n in (H * D, cache.storage_offset(), *cache.stride()[:2])]
    if ratio > 1 and all(n % ratio == 0 for n in sizes):
        words = [cache.view(WIDE) for cache in words]
    page = words[0].shape[2]
    block = min(BLOCK, triton.next_power_of_2(page))
    copy_kernel[(C, 2 * L, triton.cdiv(page, block))](
        *(*words, source.contiguous(), target.contiguous(), tokens.contiguous()),
        *(*words[0].stride()[:2], *words[1].stride()[:2], page // page_size),
        **dict(BLOCK=block, num_warps=4),
    )
