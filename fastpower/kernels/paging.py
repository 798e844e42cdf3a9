"""Operators on paged keys and values: ``append_kv``, ``copy_pages``, ``paged_attention``.

A layer's cache is two tensors (num_pages, page_size, kv_heads, head_dim); ``copy_pages`` takes those of all layers at
once, (layers, num_pages, …). A slot is page * page_size + offset. A page is contiguous in memory; pages and layers may
have any stride.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastpower.kernels.addresses import address
from fastpower.kernels.arguments import FLOATS, check_tensor
from fastpower.kernels.caches import caches_fit, check_caches, check_written, overlaps
from fastpower.kernels.dispatch import compiling, direct, register, resolve, route, same_device

_I32, _I64 = (torch.int32,), (torch.int64,)
# Scores are float32: beyond these a scale or a soft cap would make them infinite or nothing at all.
_LARGEST = 2.0**64


def append_kv(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, backend: str = "auto"
) -> None:
    """Write the keys and values of new tokens into their slots, in place.

    Args:
        key: (N, Hkv, D), float32, bfloat16 or float16, any strides.
        value: like ``key``.
        k_cache: (num_pages, page_size, Hkv, D) of the same dtype. Written at ``slots`` only.
        v_cache: like ``k_cache``.
        slots: (N,) int64, distinct. -1 drops its token, so that a batch can be padded to a fixed size.

    Values are checked on the host only; nothing is written if a check fails.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, layout or device, a slot given twice.
        IndexError: a slot outside the cache.
        BackendUnavailable: the backend cannot run here.
    """
    (_append_kv_op if compiling() else _append_kv)(key, value, k_cache, v_cache, slots, backend)


def copy_pages(
    k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor, *, backend: str = "auto"
) -> None:
    """Copy the first ``tokens[i]`` slots of page ``source[i]`` to page ``target[i]`` in all layers, in place.

    Args:
        k_cache: (layers, num_pages, page_size, Hkv, D), float32, bfloat16 or float16.
        v_cache: like ``k_cache``.
        source: (C,) int64 pages.
        target: (C,) int64 pages, distinct, none of them a source: the copies can run in any order.
        tokens: (C,) int64 in [0, page_size].

    Values are checked on the host only; nothing is written if a check fails.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, layout or device, overlapping copies.
        IndexError: a page or a number of tokens out of range.
        BackendUnavailable: the backend cannot run here.
    """
    (_copy_pages_op if compiling() else _copy_pages)(k_cache, v_cache, source, target, tokens, backend)


def paged_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    shared: tuple[Tensor, Tensor] | None = None,
    ancestors: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention of ragged queries (decode, chunked prefill, both mixed) over paged keys and values.

    Sequence s owns queries query_starts[s] … query_starts[s+1] - 1, which are its last tokens: with n of them, query i
    sits at position lengths[s] - n + i and sees positions <= its own, and > its own - window if window > 0. K/V of all
    lengths[s] tokens are in the cache already. Query head h reads key/value head h // (Hq // Hkv).

    Args:
        query: (N, Hq, D), float32, bfloat16 or float16; Hq a multiple of Hkv; D a multiple of 8, at most 256.
        k_cache: (num_pages, page_size, Hkv, D) of the same dtype.
        v_cache: like ``k_cache``.
        page_table: (S, max_pages) int32; only the entries that lengths[s] needs are looked at.
        query_starts: (S+1,) int32, from 0 to N, not decreasing.
        lengths: (S,) int32 tokens, those of the queries included.
        scale: multiplies q.k; D**-0.5 if None.
        window: 0 for none.
        softcap: > 0 makes scores softcap * tanh(score / softcap), after scaling.
        shared: (starts (G+1,) int32, pages (G,) int32): the sequences starts[g] … starts[g+1] - 1 have their first
            pages[g] page-table entries in common, full pages before every query, and a backend may read those once for
            all of them. A hint: it changes time, never a bit of the result.
        ancestors: (N,) int64: the queries of a sequence, at most 64, form a tree. Bit j of a query's word says whether
            it sees its sequence's query j; bits before its own are its ancestors', its own is set, none is behind it.
            Everything before the sequence's first query it sees anyway. Not together with ``window``.

    Returns (N, Hq, D), contiguous, of the query's dtype. A row's bits do not depend on the other rows, on how many of
    its sequence's queries are in this call, on the pages' numbers, on ``shared`` or on the number of threads (they do
    depend on the backend and, for the CPU, on the instruction set). Values are checked on the host only.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, layout, device or parameter, fewer tokens than queries, a group that does not share
            what it claims.
        IndexError: a page outside the cache.
        BackendUnavailable: the backend cannot run here.
    """
    starts, pages = (None, None) if shared is None else shared
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    call = _paged_attention_op if compiling() else _paged_attention
    result: Tensor = call(
        query,
        k_cache,
        v_cache,
        page_table,
        query_starts,
        lengths,
        scale,
        window,
        float(softcap),
        starts,
        pages,
        ancestors,
        backend,
    )
    return result


# A decode step calls these operators dozens of times, so the good case is one expression; only when it is false are the
# arguments looked at one by one, to say what is wrong.


def _append_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, backend: str) -> None:
    op, native = "append_kv", direct(backend)
    if native is not None and native.direct_append_kv(key, value, k_cache, v_cache, slots):
        return
    if not _append_fits(key, value, k_cache, v_cache, slots):
        _check_append(op, key, value, k_cache, v_cache, slots)
    backend, run = route(op, backend, key)
    if backend != "cpu" and key.is_cpu:  # the C++ kernels check values themselves
        slots = slots.contiguous()
        _native().check_slots(address(slots, torch.int64), slots.shape[0], k_cache.shape[0], k_cache.shape[1])
    run(key, value, k_cache, v_cache, slots)


def _append_fits(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> bool:
    try:
        tokens, heads, dim = key.shape
        dtype, shape = key.dtype, k_cache.shape
        return (
            dtype in FLOATS
            and value.dtype is dtype
            and value.shape == key.shape
            and slots.dtype is torch.int64
            and slots.shape == (tokens,)
            and shape[2:] == (heads, dim)
            and caches_fit(k_cache, v_cache, dtype)
            and not (overlaps(k_cache) or overlaps(v_cache))
            and same_device(key, value, k_cache, v_cache, slots)
        )
    except (AttributeError, ValueError):
        return False


def _check_append(op: str, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    check_tensor(op, "key", key, FLOATS, ("N", "Hkv", "D"))
    device = key.device
    check_tensor(op, "value", value, (key.dtype,), key.shape, device)
    check_caches(op, k_cache, v_cache, ("pages", "page_size", *key.shape[1:]), key.dtype, device)
    check_written(op, k_cache, v_cache)
    check_tensor(op, "slots", slots, _I64, key.shape[:1], device)


def _copy_pages(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor, backend: str) -> None:
    op = "copy_pages"
    check_tensor(op, "k_cache", k_cache, FLOATS, ("layers", "pages", "page_size", "Hkv", "D"))
    device = k_cache.device
    check_caches(op, k_cache, v_cache, k_cache.shape, k_cache.dtype, device)
    check_written(op, k_cache, v_cache)
    check_tensor(op, "source", source, _I64, ("C",), device)
    check_tensor(op, "target", target, _I64, source.shape, device)
    check_tensor(op, "tokens", tokens, _I64, source.shape, device)
    backend, run = route(op, backend, k_cache)
    if backend != "cpu" and k_cache.is_cpu:
        source, target, tokens = source.contiguous(), target.contiguous(), tokens.contiguous()
        addresses = (address(part, torch.int64) for part in (source, target, tokens))
        _native().check_copies(*addresses, source.shape[0], k_cache.shape[1], k_cache.shape[2])
    run(k_cache, v_cache, source, target, tokens)


def _paged_attention(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
    softcap: float,
    shared_starts: Tensor | None,
    shared_pages: Tensor | None,
    ancestors: Tensor | None,
    backend: str,
) -> Tensor:
    op, native = "paged_attention", direct(backend)
    tensors = (query, k_cache, v_cache, page_table, query_starts, lengths)
    shared = (shared_starts, shared_pages)
    if native is not None and ancestors is None:
        done: Tensor | None = native.direct_paged_attention(*tensors, scale, window, softcap, *shared)
        if done is not None:
            return done
    if not _attention_fits(*tensors, scale, window, softcap, *shared, ancestors):
        _check_attention(op, *tensors, scale, window, softcap, *shared, ancestors)
    backend, run = route(op, backend, query)
    groups = None if shared_starts is None else shared
    if backend != "cpu" and query.is_cpu:
        resolve(op, "cpu", query.device)(*tensors, shared=groups, ancestors=ancestors, check_only=True)
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "shared": groups}
    result: Tensor = run(*tensors, **options, ancestors=ancestors)
    return result


def _attention_fits(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
    softcap: float,
    shared_starts: Tensor | None,
    shared_pages: Tensor | None,
    ancestors: Tensor | None,
) -> bool:
    try:
        _, q_heads, dim = query.shape
        _, _, kv_heads, cache_dim = k_cache.shape
        sequences, _ = page_table.shape
        dtype = query.dtype
        return (
            (shared_starts is shared_pages is None or _groups_fit(shared_starts, shared_pages, query))
            and ancestors is None
            and dtype in FLOATS
            and 0 < dim <= 256
            and dim % 8 == 0
            and cache_dim == dim
            and q_heads >= kv_heads > 0
            and q_heads % kv_heads == 0
            and page_table.dtype is torch.int32
            and query_starts.dtype is torch.int32
            and lengths.dtype is torch.int32
            and query_starts.shape == (sequences + 1,)
            and lengths.shape == (sequences,)
            and caches_fit(k_cache, v_cache, dtype)
            and same_device(query, k_cache, v_cache, page_table, query_starts, lengths)
            and window >= 0
            and abs(scale) <= _LARGEST
            and (softcap == 0.0 or 1 / _LARGEST <= softcap <= _LARGEST)
        )
    except (AttributeError, ValueError):
        return False


def _groups_fit(starts: Tensor | None, pages: Tensor | None, query: Tensor) -> bool:
    return (
        starts is not None
        and pages is not None
        and starts.dtype is pages.dtype is torch.int32
        and starts.ndim == pages.ndim == 1
        and starts.shape[0] == pages.shape[0] + 1
        and same_device(query, starts, pages)
    )


def _check_attention(
    op: str,
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    query_starts: Tensor,
    lengths: Tensor,
    scale: float,
    window: int,
    softcap: float,
    shared_starts: Tensor | None,
    shared_pages: Tensor | None,
    ancestors: Tensor | None,
) -> None:
    check_tensor(op, "query", query, FLOATS, ("N", "Hq", "D"))
    device, (_, heads, dim) = query.device, query.shape
    check_caches(op, k_cache, v_cache, ("pages", "page_size", "Hkv", dim), query.dtype, device)
    check_tensor(op, "lengths", lengths, _I32, ("S",), device)
    check_tensor(op, "query_starts", query_starts, _I32, (lengths.shape[0] + 1,), device)
    check_tensor(op, "page_table", page_table, _I32, (lengths.shape[0], "max_pages"), device)
    kv_heads = k_cache.shape[2]
    if dim % 8 or not 0 < dim <= 256:
        raise ValueError(f"{op}: head_dim must be a multiple of 8, at most 256, got {dim}; pad the heads with zeros")
    if kv_heads == 0 or heads < kv_heads or heads % kv_heads:
        raise ValueError(f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}")
    if not abs(scale) <= _LARGEST:
        raise ValueError(f"{op}: scale must be finite and at most 2**64, since scores are float32, got {scale}")
    if window < 0:
        raise ValueError(f"{op}: window must be >= 0 (0 = none), got {window}")
    if not (softcap == 0.0 or 1 / _LARGEST <= softcap <= _LARGEST):
        raise ValueError(
            f"{op}: softcap must be 0 (none) or lie in [2**-64, 2**64], since scores are float32, got {softcap}"
        )
    if ancestors is not None:
        check_tensor(op, "ancestors", ancestors, _I64, query.shape[:1], device)
        if window > 0:
            raise ValueError(f"{op}: ancestors do not go with a window, got window={window}; use window=0")
    if shared_starts is None and shared_pages is None:
        return
    if shared_starts is None or shared_pages is None:
        raise ValueError(f"{op}: shared needs both (starts, pages), got only one")
    check_tensor(op, "shared pages", shared_pages, _I32, ("G",), device)
    check_tensor(op, "shared starts", shared_starts, _I32, (shared_pages.shape[0] + 1,), device)


def _native() -> Any:
    from fastpower import _C

    return _C


def _fake_append_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, backend: str) -> None:
    pass


def _fake_copy_pages(
    k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor, backend: str
) -> None:
    pass


def _fake_paged_attention(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


_append_kv_op = register(
    "append_kv(Tensor key, Tensor value, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots, str backend) -> ()",
    _append_kv,
    _fake_append_kv,
)
_copy_pages_op = register(
    "copy_pages(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor source, Tensor target, Tensor tokens, str backend) "
    "-> ()",
    _copy_pages,
    _fake_copy_pages,
)
_paged_attention_op = register(
    "paged_attention(Tensor query, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor query_starts, "
    "Tensor lengths, float scale, int window, float softcap, Tensor? shared_starts, Tensor? shared_pages, "
    "Tensor? ancestors, str backend) -> Tensor",
    _paged_attention,
    _fake_paged_attention,
)
