"""The CPU kernels on arrays of any library, without torch: NumPy's, JAX's, CuPy's on the host, whatever has DLPack.

    from fastpower import arrays

    token, logp, logz, entropy, status = arrays.sample_tokens(logits, alpha, exponents, rows, keys, positions)

Contracts, statuses and bits are those of the namesakes in ``fastpower.kernels`` with ``backend="cpu"``; results are
NumPy arrays, or ``out``. Inputs are NumPy arrays (bfloat16 as ``ml_dtypes`` has it) or objects with ``__dlpack__``,
on the CPU, of exactly the dtypes that are named; nothing is converted, nothing is copied. An array that is written
must be writable. Every error of ``fastpower.kernels`` is raised with the same classes, before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastpower import _C

FLOATS = ("float32", "bfloat16", "float16")
_CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int32": 4, "int64": 8}
_DLPACK = {(0, 32): "int32", (0, 64): "int64", (2, 16): "float16", (2, 32): "float32", (2, 64): "float64"}
_DLPACK |= {(4, 16): "bfloat16"}
_CPU = 1  # DLPack's number of the host


class TokenSamples(NamedTuple):
    """Results of ``sample_tokens``, as of ``fastpower.kernels.TokenSamples``."""

    token: Any  #: (D,) int64
    logp: Any  #: (D,) float32
    logz: Any  #: (B, E) float32
    entropy: Any  #: (B,) float32
    status: Any  #: (B,) int32


class TokenScores(NamedTuple):
    """Results of ``score_tokens``, as of ``fastpower.kernels.TokenScores``."""

    logp: Any  #: (B,) float32
    logz: Any  #: (B, E) float32
    entropy: Any  #: (B,) float32
    status: Any  #: (B,) int32


def sample_tokens(
    logits: Any,
    alpha: Any,
    exponents: Any,
    rows: Any,
    keys: Any,
    positions: Any,
    exclude: Any = None,
    *,
    out: TokenSamples | None = None,
) -> TokenSamples:
    """Draw tokens from rows of logits and return the rows' statistics; see ``fastpower.kernels.sample_tokens``.

    Args:
        logits: (B, V) float32, bfloat16 or float16, last stride 1.
        alpha: (B,) float32.
        exponents: (E,) float32.
        rows: (D,) int64.
        keys: (D,) int64, the bits of 64-bit keys (``view(np.int64)`` of unsigned ones).
        positions: (D,) int64.
        exclude: (D,) int64 or None.
        out: Arrays to be written and returned.

    Returns:
        Arrays as in ``TokenSamples``.

    Raises:
        TypeError: What is no array, or of another dtype.
        ValueError: A wrong shape, layout or device, a value out of range.
    """
    call = _Call("sample_tokens")
    z, (batch, vocab) = call.logits(logits)
    a = call.vector("alpha", alpha, "float32", batch)
    e = call.vector("exponents", exponents, "float32")
    r = call.vector("rows", rows, "int64")
    (count,), (draws,) = e.shape, r.shape
    k, p = (call.vector(n, x, "int64", draws) for n, x in (("keys", keys), ("positions", positions)))
    x = None if exclude is None else call.vector("exclude", exclude, "int64", draws)
    shapes = {"token": ((draws,), "int64"), "logp": ((draws,), "float32"), "logz": ((batch, count), "float32")}
    shapes |= {"entropy": ((batch,), "float32"), "status": ((batch,), "int32")}
    results, views = call.outputs(shapes, out)
    _C.sample_tokens(
        *(z.address, _CODES[z.dtype], batch, vocab, z.strides[0], a.address, e.address, count, draws),
        *(r.address, k.address, p.address, 0 if x is None else x.address, *(view.address for view in views)),
    )
    return TokenSamples(*results)


def score_tokens(logits: Any, tokens: Any, exponents: Any, *, out: TokenScores | None = None) -> TokenScores:
    """The statistics of ``sample_tokens`` for given tokens; see ``fastpower.kernels.score_tokens``.

    Args:
        logits: (B, V) as in ``sample_tokens``.
        tokens: (B,) int64.
        exponents: (E,) float32.
        out: Arrays to be written and returned.

    Returns:
        Arrays as in ``TokenScores``.

    Raises:
        TypeError: What is no array, or of another dtype.
        ValueError: A wrong shape, layout or device, a value out of range.
    """
    call = _Call("score_tokens")
    z, (batch, vocab) = call.logits(logits)
    t, e = call.vector("tokens", tokens, "int64", batch), call.vector("exponents", exponents, "float32")
    (count,) = e.shape
    shapes = {"logp": ((batch,), "float32"), "logz": ((batch, count), "float32"), "entropy": ((batch,), "float32")}
    results, views = call.outputs(shapes | {"status": ((batch,), "int32")}, out)
    _C.score_tokens(
        *(z.address, _CODES[z.dtype], batch, vocab, z.strides[0], t.address, e.address, count),
        *(view.address for view in views),
    )
    return TokenScores(*results)


def paged_attention(
    query: Any,
    k_cache: Any,
    v_cache: Any,
    page_table: Any,
    query_starts: Any,
    lengths: Any,
    *,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    out: Any = None,
) -> Any:
    """Causal attention of ragged queries over pages; see ``fastpower.kernels.paged_attention``.

    Args:
        query: (N, Hq, D) float32, bfloat16 or float16, last stride 1.
        k_cache: (num_pages, page_size, Hkv, D) of the same dtype, contiguous.
        v_cache: Like ``k_cache``.
        page_table: (S, max_pages) int32, contiguous.
        query_starts: (S + 1,) int32.
        lengths: (S,) int32.
        scale: Multiplies q.k; D**-0.5 if None.
        window: 0 for none.
        softcap: 0 for none.
        out: (N, Hq, D) to be written and returned; needed for bfloat16, which NumPy does not have.

    Returns:
        (N, Hq, D) of the query's dtype.

    Raises:
        TypeError: What is no array, or of another dtype.
        ValueError: A wrong shape, layout, device or parameter.
        IndexError: A page outside the cache.
    """
    call = _Call("paged_attention")
    q = call.take("query", query, FLOATS, 3)
    tokens, heads, dim = q.shape
    k = call.take("k_cache", k_cache, (q.dtype,), 4, dense=True)
    pages, page_size, kv_heads, _ = k.shape
    v = call.take("v_cache", v_cache, (q.dtype,), k.shape, dense=True)
    n = call.vector("lengths", lengths, "int32")
    starts = call.vector("query_starts", query_starts, "int32", n.shape[0] + 1)
    table = call.take("page_table", page_table, ("int32",), 2, dense=True)
    scale = dim**-0.5 if scale is None else float(scale)
    call.require(table.shape[0] == n.shape[0], f"page_table must have {n.shape[0]} rows, got {table.shape[0]}")
    call.require(q.strides[2] == 1 or dim <= 1, f"query must have last stride 1, got strides {q.strides}")
    call.require(k.shape[3] == dim, f"k_cache must have head_dim {dim}, got {k.shape[3]}")
    call.require(0 < dim <= 256 and dim % 8 == 0, f"head_dim must be a multiple of 8, at most 256, got {dim}")
    call.require(page_size > 0, "k_cache needs pages of at least one token")
    grouped = kv_heads > 0 and heads >= kv_heads and heads % kv_heads == 0
    call.require(grouped, f"query heads must be a multiple of key/value heads, got {heads} and {kv_heads}")
    call.require(abs(scale) <= 2.0**64, f"scale must be finite and at most 2**64, got {scale}")
    call.require(window >= 0, f"window must be >= 0 (0 = none), got {window}")
    capped = softcap == 0 or 2.0**-64 <= softcap <= 2.0**64
    call.require(capped, f"softcap must be 0 (none) or lie in [2**-64, 2**64], got {softcap}")
    call.require(out is not None or q.dtype != "bfloat16", "give out= for bfloat16, which NumPy does not have")
    given = None if out is None else (out,)
    (result,), (target,) = call.outputs({"out": ((tokens, heads, dim), q.dtype)}, given)
    _C.paged_attention(
        *(q.address, k.address, v.address, target.address, q.dtype, q.strides[0], q.strides[1]),
        *(k.strides[0], v.strides[0], tokens, heads, kv_heads, dim, pages, page_size, table.address, n.shape[0]),
        *(table.shape[1], table.shape[1], starts.address, n.address, 0, 0, 0, scale, window, float(softcap), 0, False),
    )
    return result


class _View(NamedTuple):
    """An array as C++ sees it."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  #: in entries
    writable: bool
    owner: Any  #: what keeps the memory alive

    def reach(self) -> tuple[int, int]:
        """Addresses of the first byte and behind the last."""
        if 0 in self.shape:
            return 0, 0
        ends = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low, high = sum(min(0, end) for end in ends), sum(max(0, end) for end in ends) + 1
        return self.address + low * _SIZES[self.dtype], self.address + high * _SIZES[self.dtype]


class _Call:
    """One call's arguments as they are taken; errors name its operator."""

    def __init__(self, op: str) -> None:
        self.op = op
        self._taken: list[_View] = []

    def require(self, good: bool, message: str) -> None:
        if not good:
            raise ValueError(f"{self.op}: {message}")

    def take(
        self, name: str, array: Any, dtypes: Sequence[str], shape: int | tuple[int, ...], *, dense: bool = False
    ) -> _View:
        """An argument as C++ sees it.

        Args:
            name: Of the argument, for messages.
            array: What was given.
            dtypes: Those it may have.
            shape: Sizes of its dimensions, or their number.
            dense: It must be contiguous.

        Raises:
            TypeError: Another dtype.
            ValueError: Another shape, other strides, or no memory.
        """
        view = self._view(name, array)
        if view.dtype not in dtypes:
            raise TypeError(f"{self.op}: {name} must be {' or '.join(dtypes)}, got {view.dtype}")
        fits = len(view.shape) == shape if isinstance(shape, int) else view.shape == shape
        wanted = f"{shape} dimensions" if isinstance(shape, int) else f"shape {shape}"
        self.require(fits, f"{name} must have {wanted}, got shape {view.shape}")
        self.require(not dense or _contiguous(view), f"{name} must be contiguous, got strides {view.strides}")
        self.require(view.address != 0 or 0 in view.shape, f"{name} has no memory")
        self._taken.append(view)
        return view

    def vector(self, name: str, array: Any, dtype: str, size: int | None = None) -> _View:
        return self.take(name, array, (dtype,), 1 if size is None else (size,), dense=True)

    def logits(self, array: Any) -> tuple[_View, tuple[int, int]]:
        view = self.take("logits", array, FLOATS, 2)
        batch, vocab = view.shape
        self.require(vocab > 0, f"logits must have at least one column, got shape {view.shape}")
        self.require(view.strides[1] == 1 or vocab == 1, f"logits must have last stride 1, got strides {view.strides}")
        return view, (batch, vocab)

    def outputs(
        self, shapes: dict[str, tuple[tuple[int, ...], str]], out: Sequence[Any] | None
    ) -> tuple[list[Any], list[_View]]:
        """What is written: new arrays, or those of the caller, which share memory with nothing else."""
        if out is None:
            made: list[NDArray[Any]] = [np.empty(shape, dtype) for shape, dtype in shapes.values()]
            return made, [self._view(name, array) for name, array in zip(shapes, made, strict=True)]
        if len(out) != len(shapes):
            raise TypeError(f"{self.op}: out must hold {', '.join(shapes)}, got {len(out)} arrays")
        views: list[_View] = []
        inputs = len(self._taken)
        for (name, (shape, dtype)), array in zip(shapes.items(), out, strict=True):
            view = self.take(name if name == "out" else f"out.{name}", array, (dtype,), shape, dense=True)
            self.require(view.writable, f"out.{name} is read-only")
            for other in (*self._taken[:inputs], *views):
                (a, b), (c, d) = view.reach(), other.reach()
                self.require(not (a < b and c < d and a < d and c < b), f"out.{name} shares memory with an argument")
            views.append(view)
        return list(out), views

    def _view(self, name: str, array: Any) -> _View:
        if isinstance(array, np.ndarray):
            size = array.itemsize
            if any(stride % size for stride in array.strides) or array.ctypes.data % size:
                raise ValueError(f"{self.op}: {name} is not aligned to its entries; use numpy.ascontiguousarray")
            native = "bfloat16" if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("=").name
            dtype = native if array.dtype.isnative else f"{native} of another byte order"
            strides = tuple(stride // size for stride in array.strides)
            return _View(array.ctypes.data, dtype, array.shape, strides, array.flags.writeable, array)
        if not hasattr(array, "__dlpack__"):
            raise TypeError(
                f"{self.op}: {name} must be a NumPy array or have __dlpack__, got {type(array).__name__}; "
                "numpy.asarray makes one"
            )
        device = array.__dlpack_device__()[0]
        if device != _CPU:
            raise ValueError(f"{self.op}: {name} must be on the CPU, got DLPack device {int(device)}; move it there")
        try:
            capsule = array.__dlpack__(max_version=(1, 0))
        except TypeError:  # an older library
            capsule = array.__dlpack__()
        address, code, bits, lanes, _, shape, strides, read_only = _C.dlpack_view(capsule)
        dtype = _DLPACK.get((code, bits), f"DLPack type {code} of {bits} bits") if lanes == 1 else f"{lanes} lanes"
        return _View(address, dtype, shape, strides, not read_only, capsule)


def _contiguous(view: _View) -> bool:
    dense = [math.prod(view.shape[i + 1 :]) for i in range(len(view.shape))]
    return 0 in view.shape or all(n == 1 or s == d for n, s, d in zip(view.shape, view.strides, dense, strict=True))
