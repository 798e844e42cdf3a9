"""Statistics of logits rows and draws from them: ``sample_tokens`` and ``score_tokens``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastpower.kernels.arguments import FLOATS, check_tensor
from fastpower.kernels.dispatch import compiling, direct, register, route, same_device

_F32, _I64 = (torch.float32,), (torch.int64,)


class TokenSamples(NamedTuple):
    """Draws and row statistics. Natural logarithms; entropy in nats."""

    token: Tensor  #: (D,) int64, -1 where nothing could be drawn (see status)
    logp: Tensor  #: (D,) float32 log softmax(logits)[token], exponent 1 whatever alpha is; NaN where token is -1
    logz: Tensor  #: (B, E) float32 log sum_v p(v)^e
    entropy: Tensor  #: (B,) float32, of p
    status: Tensor  #: (B,) int32 bits of ``Status``


class TokenScores(NamedTuple):
    """Row statistics for given tokens. Natural logarithms; entropy in nats."""

    logp: Tensor  #: (B,) float32, -inf for a masked token
    logz: Tensor  #: (B, E) float32
    entropy: Tensor  #: (B,) float32
    status: Tensor  #: (B,) int32 bits of ``Status``


def sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None = None,
    *,
    backend: str = "auto",
) -> TokenSamples:
    """Draw tokens from rows of logits and return the rows' statistics, reading the logits once.

    With p = softmax(logits[b]): draws of row b follow p(v)^alpha[b] / sum_w p(w)^alpha[b].

    Args:
        logits: (B, V) float32, bfloat16 or float16, any row stride, last stride 1. -inf masks a token.
        alpha: (B,) float32, finite, > 0.
        exponents: (E,) float32, finite, > 0; E may be 0. ``logz[b, e] = log sum_v p(v)^exponents[e]``.
        rows: (D,) int64, the row of each draw, in any order, repeats welcome; D may be 0.
        keys: (D,) int64, the bits of a 64-bit Philox key (``fastpower.random.derive``).
        positions: (D,) int64, the Philox counter; its low 32 bits count.
        exclude: (D,) int64, a token removed from that draw, -1 for none. The draw is exact however little is left.
        backend: see ``fastpower.kernels.backends``.

    A row with NaN or +inf, a row without a finite entry, and a draw with nothing left after ``exclude`` raise nothing:
    their ``status`` says so, the token is -1 and what cannot be computed is NaN. A row's results depend on that row
    alone, bit for bit: not on B, its index, the strides, the number of threads or the other draws.

    Values are checked on the host only (a device would have to be waited for).

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, ``alpha`` or ``exponents`` not finite or <= 0, a row or excluded token out
            of range.
        BackendUnavailable: the backend cannot run here.
    """
    arguments = (logits, alpha, exponents, rows, keys, positions, exclude, backend)
    return TokenSamples(*(_sample_tokens_op(*arguments) if compiling() else _sample_tokens(*arguments)))


def score_tokens(logits: Tensor, tokens: Tensor, exponents: Tensor, *, backend: str = "auto") -> TokenScores:
    """The statistics of ``sample_tokens`` for given tokens, reading the logits once and writing nothing of their size.

    Args:
        logits: (B, V) as in ``sample_tokens``.
        tokens: (B,) int64 in [0, V).
        exponents: (E,) as in ``sample_tokens``.
        backend: see ``fastpower.kernels.backends``.

    A token whose logit is -inf has logp -inf. Errors and ``status`` as in ``sample_tokens``.
    """
    arguments = (logits, tokens, exponents, backend)
    return TokenScores(*(_score_tokens_op(*arguments) if compiling() else _score_tokens(*arguments)))


def _sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    op, native = "sample_tokens", direct(backend)
    if native is not None:
        done: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = native.direct_sample_tokens(
            logits, alpha, exponents, rows, keys, positions, exclude
        )
        if done is not None:
            return done
    if not _sample_fits(logits, alpha, exponents, rows, keys, positions, exclude):
        _check_sample(op, logits, alpha, exponents, rows, keys, positions, exclude)
    backend, run = route(op, backend, logits)
    if backend != "cpu" and logits.is_cpu:  # the C++ kernels check values themselves
        _check_positive(op, "alpha", alpha)
        _check_positive(op, "exponents", exponents)
        _check_range(op, "rows", rows, 0, logits.shape[0])
        if exclude is not None:
            _check_range(op, "exclude", exclude, -1, logits.shape[1])
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = run(
        logits, alpha, exponents, rows, keys, positions, exclude
    )
    return result


def _score_tokens(
    logits: Tensor, tokens: Tensor, exponents: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op, native = "score_tokens", direct(backend)
    if native is not None:
        done: tuple[Tensor, Tensor, Tensor, Tensor] | None = native.direct_score_tokens(logits, tokens, exponents)
        if done is not None:
            return done
    _check_logits(op, logits)
    device = logits.device
    check_tensor(op, "tokens", tokens, _I64, logits.shape[:1], device)
    check_tensor(op, "exponents", exponents, _F32, ("E",), device)
    backend, run = route(op, backend, logits)
    if backend != "cpu" and logits.is_cpu:
        _check_positive(op, "exponents", exponents)
        _check_range(op, "tokens", tokens, 0, logits.shape[1])
    result: tuple[Tensor, Tensor, Tensor, Tensor] = run(logits, tokens, exponents)
    return result


# As in paging.py: the good case is one expression; only when it is false are the arguments looked at one by one.


def _sample_fits(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
) -> bool:
    try:
        batch, vocab = logits.shape
        draws = rows.shape
        return (
            logits.dtype in FLOATS
            and vocab > 0
            and (logits.stride(1) == 1 or vocab == 1)
            and alpha.dtype is torch.float32
            and exponents.dtype is torch.float32
            and rows.dtype is torch.int64
            and keys.dtype is torch.int64
            and positions.dtype is torch.int64
            and alpha.shape == (batch,)
            and exponents.dim() == 1
            and len(draws) == 1
            and keys.shape == draws
            and positions.shape == draws
            and same_device(logits, alpha, exponents, rows, keys, positions)
            and (
                exclude is None
                or (exclude.dtype is torch.int64 and exclude.shape == draws and same_device(logits, exclude))
            )
        )
    except (AttributeError, ValueError):
        return False


def _check_sample(
    op: str,
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
) -> None:
    _check_logits(op, logits)
    device = logits.device
    check_tensor(op, "alpha", alpha, _F32, logits.shape[:1], device)
    check_tensor(op, "exponents", exponents, _F32, ("E",), device)
    check_tensor(op, "rows", rows, _I64, ("D",), device)
    draws = rows.shape
    check_tensor(op, "keys", keys, _I64, draws, device)
    check_tensor(op, "positions", positions, _I64, draws, device)
    if exclude is not None:
        check_tensor(op, "exclude", exclude, _I64, draws, device)


def _check_logits(op: str, logits: Tensor) -> None:
    check_tensor(op, "logits", logits, FLOATS, ("B", "V"))
    vocab = logits.shape[1]
    if vocab == 0:
        raise ValueError(f"{op}: logits must have at least one column, got shape {tuple(logits.shape)}")
    if logits.stride(1) != 1 and vocab > 1:
        raise ValueError(f"{op}: logits must have last stride 1, got {logits.stride()}; use logits.contiguous()")


def _check_positive(op: str, name: str, values: Tensor) -> None:
    bad = ~((values > 0) & values.isfinite())
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(f"{op}: {name}[{i}] must be finite and > 0, got {float(values[i]):g}")


def _check_range(op: str, name: str, values: Tensor, low: int, end: int) -> None:
    bad = (values < low) | (values >= end)
    if bad.any():
        i = int(bad.nonzero()[0, 0])
        raise ValueError(f"{op}: {name}[{i}] must be in [{low}, {end}), got {int(values[i])}")


def _fake_sample_tokens(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        rows.new_empty(rows.shape),
        alpha.new_empty(rows.shape),
        alpha.new_empty(logits.shape[0], exponents.shape[0]),
        alpha.new_empty(logits.shape[0]),
        rows.new_empty(logits.shape[0], dtype=torch.int32),
    )


def _fake_score_tokens(
    logits: Tensor, tokens: Tensor, exponents: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        exponents.new_empty(rows),
        exponents.new_empty(rows, exponents.shape[0]),
        exponents.new_empty(rows),
        tokens.new_empty(rows, dtype=torch.int32),
    )


_sample_tokens_op = register(
    "sample_tokens(Tensor logits, Tensor alpha, Tensor exponents, Tensor rows, Tensor keys, Tensor positions, "
    "Tensor? exclude, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _sample_tokens,
    _fake_sample_tokens,
)
_score_tokens_op = register(
    "score_tokens(Tensor logits, Tensor tokens, Tensor exponents, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _score_tokens,
    _fake_score_tokens,
)
