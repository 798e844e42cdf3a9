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
from fastpower.kernels.arguments import real_number, whole_number
from fastpower.kernels.contracts import APPEND_KV, COPY_PAGES, PAGED_ATTENTION, PAGED_ATTENTION_OUT
from fastpower.kernels.dispatch import compiling, direct, resolve, route
from fastpower.kernels.outputs import run_into


def append_kv(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, backend: str = "auto"
) -> None:
    """Write the keys and values of new tokens into their slots, in place.

    Values are checked on the host only; nothing is written if a check fails.

    Args:
        key: (N, Hkv, D), float32, bfloat16 or float16, any strides.
        value: Like ``key``.
        k_cache: (num_pages, page_size, Hkv, D) of the same dtype. Written at ``slots`` only.
        v_cache: Like ``k_cache``.
        slots: (N,) int64, distinct. -1 drops its token, so that a batch can be padded to a fixed size.
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape, layout or device, a slot given twice.
        IndexError: A slot outside the cache.
        BackendUnavailable: The backend cannot run here.
    """
    (_append_kv_op if compiling() else _append_kv)(key, value, k_cache, v_cache, slots, backend)


def copy_pages(
    k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor, *, backend: str = "auto"
) -> None:
    """Copy the first ``tokens[i]`` slots of page ``source[i]`` to page ``target[i]`` in all layers, in place.

    Values are checked on the host only; nothing is written if a check fails.

    Args:
        k_cache: (layers, num_pages, page_size, Hkv, D), float32, bfloat16 or float16.
        v_cache: Like ``k_cache``.
        source: (C,) int64 pages.
        target: (C,) int64 pages, distinct, none of them a source: the copies can run in any order.
        tokens: (C,) int64 in [0, page_size].
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape, layout or device, overlapping copies.
        IndexError: A page or a number of tokens out of range.
        BackendUnavailable: The backend cannot run here.
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
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention of ragged queries (decode, chunked prefill, both mixed) over paged keys and values.

    Sequence s owns queries query_starts[s] … query_starts[s+1] - 1, which are its last tokens: with n of them, query i
    sits at position lengths[s] - n + i and sees positions <= its own, and > its own - window if window > 0. K/V of all
    lengths[s] tokens are in the cache already. Query head h reads key/value head h // (Hq // Hkv).

    Values are checked on the host only.

    Args:
        query: (N, Hq, D), float32, bfloat16 or float16; Hq a multiple of Hkv; D a multiple of 8, at most 256.
        k_cache: (num_pages, page_size, Hkv, D) of the same dtype.
        v_cache: Like ``k_cache``.
        page_table: (S, max_pages) int32; only the entries that lengths[s] needs are looked at.
        query_starts: (S+1,) int32, from 0 to N, not decreasing.
        lengths: (S,) int32 tokens, those of the queries included.
        scale: Multiplies q.k; D**-0.5 if None.
        window: 0 for none.
        softcap: > 0 makes scores softcap * tanh(score / softcap), after scaling.
        shared: (starts (G+1,) int32, pages (G,) int32): the sequences starts[g] … starts[g+1] - 1 have their first
            pages[g] page-table entries in common, full pages before every query, and a backend may read those once for
            all of them. A hint: it changes time, never a bit of the result.
        ancestors: (N,) int64: the queries of a sequence, at most 64, form a tree. Bit j of a query's word says whether
            it sees its sequence's query j; bits before its own are its ancestors', its own is set, none is behind it.
            Everything before the sequence's first query it sees anyway. Not together with ``window``.
        out: (N, Hq, D), contiguous, of the query's dtype, apart from the arguments: Written and returned. The bits are
            those of a call without.
        workspace: (bytes,) uint8 on the query's device, at least ``paged_attention_workspace`` many. With ``out`` and
            this a call allocates nothing; without it, or where it needs none, working memory is the backend's affair.
        backend: See ``fastpower.kernels.backends``.

    Returns:
        (N, Hq, D), contiguous, of the query's dtype. A row's bits do not depend on the other rows, on how many of its
        sequence's queries are in this call, on the pages' numbers, on ``shared`` or on the number of threads (they do
        depend on the backend and, for the CPU, on the instruction set).

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape, layout, device or parameter, fewer tokens than queries, a group that does not share
            what it claims.
        IndexError: A page outside the cache.
        BackendUnavailable: The backend cannot run here.
    """
    op = "paged_attention"
    starts, pages = (None, None) if shared is None else _pair(op, shared)
    if scale is None:
        scale = _scale(query)
    # the usual types first: this is called between two passes over gigabytes
    if type(scale) is not float or type(softcap) is not float or type(window) is not int:
        scale, softcap = real_number(f"{op}: scale", scale), real_number(f"{op}: softcap", softcap)
        window = whole_number(f"{op}: window", window)
    tensors = (query, k_cache, v_cache, page_table, query_starts, lengths)
    if out is not None or workspace is not None:
        arguments = (*tensors, scale, window, softcap, starts, pages, ancestors)
        if out is None:  # only the workspace is the caller's
            (out,) = PAGED_ATTENTION.outputs_for(*arguments)
        (_paged_attention_out_op if compiling() else _paged_attention_out)(*arguments, out, workspace, backend)
        return out
    call = _paged_attention_op if compiling() else _paged_attention
    result: Tensor = call(*tensors, scale, window, softcap, starts, pages, ancestors, backend)
    return result


# The short way comes first: it takes the plain good case. What it leaves undone is checked by the table of contracts.


def _append_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, backend: str) -> None:
    native = direct(backend)
    if native is not None and native.direct_append_kv(key, value, k_cache, v_cache, slots):
        return
    APPEND_KV.check(key, value, k_cache, v_cache, slots)
    backend, run = route("append_kv", backend, key)
    if backend != "cpu" and key.is_cpu:  # the C++ kernels check values themselves
        slots = slots.contiguous()
        _native().check_slots(address(slots, torch.int64), slots.shape[0], k_cache.shape[0], k_cache.shape[1])
    run(key, value, k_cache, v_cache, slots)


def _copy_pages(k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor, tokens: Tensor, backend: str) -> None:
    COPY_PAGES.check(k_cache, v_cache, source, target, tokens)
    backend, run = route("copy_pages", backend, k_cache)
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
    PAGED_ATTENTION.check(*tensors, scale, window, softcap, *shared, ancestors)
    backend, run = route(op, backend, query)
    groups = None if shared_starts is None else shared
    if backend != "cpu" and query.is_cpu:
        resolve(op, "cpu", query.device)(*tensors, shared=groups, ancestors=ancestors, check_only=True)
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "shared": groups}
    result: Tensor = run(*tensors, **options, ancestors=ancestors)
    return result


def _scale(query: Tensor) -> float:
    """The usual one, of any query: one without a last dimension is refused by the contract, which names it."""
    try:
        return float(query.shape[-1] ** -0.5)
    except (AttributeError, IndexError, ZeroDivisionError):
        return 1.0


def _pair(op: str, shared: Any) -> tuple[Any, Any]:
    if not isinstance(shared, (tuple, list)) or len(shared) != 2:
        raise TypeError(f"{op}: shared must be a pair of tensors (starts, pages) or None, got {type(shared).__name__}")
    return shared[0], shared[1]


def _paged_attention_out(
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
    out: Tensor,
    workspace: Tensor | None,
    backend: str,
) -> None:
    op, native = "paged_attention", direct(backend)
    tensors = (query, k_cache, v_cache, page_table, query_starts, lengths)
    shared = (shared_starts, shared_pages)
    plain = ancestors is None and workspace is None and not getattr(out, "requires_grad", True)
    if native is not None and plain:
        done = native.direct_paged_attention_into(*tensors, scale, window, softcap, *shared, out)
        if done is not None:
            return
    PAGED_ATTENTION_OUT.check(*tensors, scale, window, softcap, *shared, ancestors, out, workspace)
    backend, run = route(op, backend, query)
    groups = None if shared_starts is None else shared
    if backend != "cpu" and query.is_cpu:
        resolve(op, "cpu", query.device)(*tensors, shared=groups, ancestors=ancestors, check_only=True)
    options = {"scale": scale, "window": window, "softcap": softcap, "shared": groups, "ancestors": ancestors}
    run_into(backend, run, tensors, options, out, workspace)


def _native() -> Any:
    from fastpower import _C

    return _C


_append_kv_op = APPEND_KV.register(_append_kv)
_copy_pages_op = COPY_PAGES.register(_copy_pages)
_paged_attention_out_op = PAGED_ATTENTION_OUT.register(_paged_attention_out)
_paged_attention_op = PAGED_ATTENTION.register(_paged_attention)
