"""Rotate queries and keys to their positions and write keys and values to their cache slots, in one launch.

A row of the fused product is Hq query heads, Hkv key heads and Hkv value heads of D numbers. A query or key head h at
position p becomes, in halves (the layout of Llama and its kin),

    h' = (h₁ cos − h₂ sin,  h₂ cos + h₁ sin)        cos, sin = row p of the model's own tables, D / 2 numbers each

after h ← h / √(mean h² + ε) · w where the model normalises its heads (Qwen3, Gemma-3). Float32, rounded once. Keys and
values go where ``append_kv`` puts them; a negative slot writes nothing, so that a captured graph can be partly empty.
"""

import torch

import triton
import triton.language as tl

from .device import on_its_device


@triton.jit(do_not_specialize=["eps", "positions_ptr", "slots_ptr"])
def rotary_append_kernel(
    qkv_ptr,  # (N, (HQ + 2 HKV) · D)
    cos_ptr,  # (positions, D / 2) float32
    sin_ptr,
    positions_ptr,  # (N,) int64
    slots_ptr,  # (N,) int64
    q_norm_ptr,  # (D,) float32, unused without HAS_NORM
    k_norm_ptr,
    query_ptr,  # (N, HQ, D) out
    k_cache_ptr,  # (pages, PAGE, HKV, D), last stride 1
    v_cache_ptr,
    k_stride_page,
    v_stride_page,
    eps,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,  # power of two ≥ D / 2
    PAGE: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Program (token, head): a query head, then key heads, then value heads."""
    i_token = tl.program_id(0).to(tl.int64)
    i_head = tl.program_id(1)
    o = tl.arange(0, HALF)
    mask = o < D // 2
    p_head = qkv_ptr + i_token * ((HQ + 2 * HKV) * D) + i_head * D
    b_1 = tl.load(p_head + o, mask=mask, other=0.0).to(tl.float32)
    b_2 = tl.load(p_head + D // 2 + o, mask=mask, other=0.0).to(tl.float32)
    slot = tl.load(slots_ptr + i_token)
    if i_head < HQ + HKV:
        if HAS_NORM:
            scale = 1.0 / tl.sqrt_rn(tl.sum(b_1 * b_1 + b_2 * b_2, axis=0) / D + eps)
            p_norm = q_norm_ptr
            if i_head >= HQ:
                p_norm = k_norm_ptr
            b_1 = b_1 * scale * tl.load(p_norm + o, mask=mask, other=0.0)
            b_2 = b_2 * scale * tl.load(p_norm + D // 2 + o, mask=mask, other=0.0)
        o_table = tl.load(positions_ptr + i_token) * (D // 2) + o
        b_cos = tl.load(cos_ptr + o_table, mask=mask, other=0.0)
        b_sin = tl.load(sin_ptr + o_table, mask=mask, other=0.0)
        b_first = b_1 * b_cos - b_2 * b_sin
        b_2 = b_2 * b_cos + b_1 * b_sin
        b_1 = b_first
    page = slot // PAGE
    offset = (slot % PAGE) * (HKV * D)
    if i_head < HQ:
        p_out = query_ptr + (i_token * HQ + i_head) * D
    elif i_head < HQ + HKV:
        p_out = k_cache_ptr + page * k_stride_page + offset + (i_head - HQ) * D
        mask = o < tl.where(slot >= 0, D // 2, 0)
    else:
        p_out = v_cache_ptr + page * v_stride_page + offset + (i_head - HQ - HKV) * D
        mask = o < tl.where(slot >= 0, D // 2, 0)
    tl.store(p_out + o, b_1.to(query_ptr.dtype.element_ty), mask=mask)
    tl.store(p_out + D // 2 + o, b_2.to(query_ptr.dtype.element_ty), mask=mask)


@on_its_device
def rotary_append(qkv, cos, sin, positions, slots, k_cache, v_cache, *, heads, q_norm=None, k_norm=None, eps=0.0):
    """Queries (N, heads, D), rotated; keys and values in their slots of ``k_cache``, ``v_cache``, in place.

    qkv (N, (heads + 2 Hkv) · D) contiguous, of the caches' dtype; cos, sin (P, D / 2) float32 contiguous; positions,
    slots (N,) int64, slots distinct or negative; caches (pages, page_size, Hkv, D) with contiguous pages; q_norm,
    k_norm (D,) float32, both or neither. Arguments are trusted.
    """
    N, (_, page_size, kv_heads, D) = qkv.shape[0], k_cache.shape
    query = torch.empty((N, heads, D), dtype=qkv.dtype, device=qkv.device)
    if N > 0:
        rotary_append_kernel[(N, heads + 2 * kv_heads)](
            *(qkv, cos, sin, positions, slots, cos if q_norm is None else q_norm, cos if k_norm is None else k_norm),
            *(query, k_cache, v_cache, k_cache.stride(0), v_cache.stride(0), eps),
            **dict(HQ=heads, HKV=kv_heads, D=D, HALF=triton.next_power_of_2(D // 2), PAGE=page_size),
            **dict(HAS_NORM=q_norm is not None, num_warps=1),
        )
    return query
