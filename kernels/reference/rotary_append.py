"""Specification of ``rotary_append``."""

import torch

from .append_kv import append_kv


def rotary_append(qkv, cos, sin, positions, slots, k_cache, v_cache, *, heads, q_norm=None, k_norm=None, eps=0.0):
    """Queries (N, heads, D), rotated in halves; keys and values in their slots of ``k_cache``, ``v_cache``, in place.

    qkv (N, (heads + 2 Hkv) · D); cos, sin (P, D / 2) float32; positions, slots (N,) int64, negative slots skip; q_norm,
    k_norm (D,) float32 normalise each head first. Float64 inside.
    """
    kv_heads, D = k_cache.shape[2:]
    parts = qkv.view(len(qkv), -1, D).split([heads, kv_heads, kv_heads], dim=1)
    c, s = (table[positions].double()[:, None] for table in (cos, sin))

    def turn(x, norm):
        x = x.double()
        if norm is not None:
            x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.double()
        first, second = x.chunk(2, -1)
        turned = torch.cat([first * c - second * s, second * c + first * s], -1)
        return turned.to(torch.float32).to(qkv.dtype)

    append_kv(turn(parts[1], k_norm), parts[2], k_cache, v_cache, slots)
    return turn(parts[0], q_norm).contiguous()
