"""Write K and V of new tokens into their cache slots, in place, one launch for both.

Slot σ of a token is (page σ // page_size, offset σ mod page_size), and its row in the cache is

    cache[page, offset, :, :]  =  page · stride_page + offset · stride_slot + head · stride_head + d

Token n contributes Hkv · D values of K and as many of V. The work is a copy: 2 · N · Hkv · D elements are read once and
written once, and nothing else is touched, so the floor is memory bandwidth. Slots of one call are distinct, so no two
programs write the same place and the order of programs cannot matter. A negative slot writes nothing: a captured
graph of fixed size can be replayed with fewer tokens.

Addresses are 64-bit: a cache of many gigabytes has more than 2^31 elements.
"""

import triton
import triton.language as tl

from .device import on_its_device

BLOCK = 1024


@triton.jit
def append_kernel(
    key_ptr,  # (N, H, D), last stride 1
    value_ptr,
    k_cache_ptr,  # (pages, PAGE, H, D), last stride 1
    v_cache_ptr,
    slots_ptr,  # (N,) int64
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    k_stride_page,
    k_stride_slot,
    k_stride_head,
    v_stride_page,
    v_stride_slot,
    v_stride_head,
    PAGE: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (token, part of its H · D values)."""
    i_token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + i_token)
    page = slot // PAGE
    offset = slot % PAGE
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = o < tl.where(slot >= 0, H * D, 0)  # interpreters take no broadcast of a single bit for a mask
    o_head = o // D
    o_d = o % D
    b_k = tl.load(key_ptr + i_token * key_stride_token + o_head * key_stride_head + o_d, mask=mask)
    b_v = tl.load(value_ptr + i_token * value_stride_token + o_head * value_stride_head + o_d, mask=mask)
    p_k = k_cache_ptr + page * k_stride_page + offset * k_stride_slot
    p_v = v_cache_ptr + page * v_stride_page + offset * v_stride_slot
    tl.store(p_k + o_head * k_stride_head + o_d, b_k, mask=mask)
    tl.store(p_v + o_head * v_stride_head + o_d, b_v, mask=mask)


@on_its_device
def append_kv(key, value, k_cache, v_cache, slots):
    """Append in place; the contract is that of ``fastpower.kernels.append_kv``.

    key, value (N, H, D) and caches (pages, page_size, H, D) with last stride 1, one dtype; slots (N,) int64, distinct,
    negative = skip. Arguments are trusted.
    """
    N, H, D = key.shape
    key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    if N == 0 or H * D == 0:
        return
    block = min(BLOCK, triton.next_power_of_2(H * D))
    append_kernel[(N, triton.cdiv(H * D, block))](
        *(key, value, k_cache, v_cache, slots.contiguous()),
        *(*key.stride()[:2], *value.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3]),
        **dict(PAGE=k_cache.shape[1], H=H, D=D, BLOCK=block, num_warps=4),
    )
