"""Statistics of logits rows and draws from them: ``sample_tokens`` and ``score_tokens``."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastpower.kernels.contracts import SAMPLE_TOKENS, SAMPLE_TOKENS_OUT, SCORE_TOKENS
from fastpower.kernels.dispatch import compiling, direct, route
from fastpower.kernels.outputs import run_into


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
    out: TokenSamples | None = None,
    workspace: Tensor | None = None,
    backend: str = "auto",
) -> TokenSamples:
    """Draw tokens from rows of logits and return the rows' statistics, reading the logits once.

    With p = softmax(logits[b]): draws of row b follow p(v)^alpha[b] / sum_w p(w)^alpha[b].

    A row with NaN or +inf, a row without a finite entry, and a draw with nothing left after ``exclude`` raise nothing:
    their ``status`` says so, the token is -1 and what cannot be computed is NaN. A row's results depend on that row
    alone, bit for bit: not on B, its index, the strides, the number of threads or the other draws.

    Values are checked on the host only (a device would have to be waited for).

    Args:
        logits: (B, V) float32, bfloat16 or float16, any row stride, last stride 1. -inf masks a token.
        alpha: (B,) float32, finite, > 0.
        exponents: (E,) float32, finite, > 0; E may be 0. ``logz[b, e] = log sum_v p(v)^exponents[e]``.
        rows: (D,) int64, the row of each draw, in any order, repeats welcome; D may be 0.
        keys: (D,) int64, the bits of a 64-bit Philox key (``fastpower.random.derive``).
        positions: (D,) int64, the Philox counter; its low 32 bits count.
        exclude: (D,) int64, a token removed from that draw, -1 for none. The draw is exact however little is left.
        out: Tensors to be written and returned, contiguous, apart from each other and from the arguments. The bits are
            those of a call without.
        workspace: (bytes,) uint8 on the logits' device, at least ``sample_tokens_workspace`` many. With ``out`` and
            this a call allocates nothing; without it, or where it needs none, working memory is the backend's affair.
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape or device, ``alpha`` or ``exponents`` not finite or <= 0, a row or excluded token out
            of range.
        BackendUnavailable: The backend cannot run here.
    """
    if out is not None or workspace is not None:
        return _sample_into(logits, alpha, exponents, rows, keys, positions, exclude, out, workspace, backend)
    arguments = (logits, alpha, exponents, rows, keys, positions, exclude, backend)
    return TokenSamples(*(_sample_tokens_op(*arguments) if compiling() else _sample_tokens(*arguments)))


def score_tokens(logits: Tensor, tokens: Tensor, exponents: Tensor, *, backend: str = "auto") -> TokenScores:
    """The statistics of ``sample_tokens`` for given tokens, reading the logits once and writing nothing of their size.

    A token whose logit is -inf has logp -inf. Errors and ``status`` as in ``sample_tokens``.

    Args:
        logits: (B, V) as in ``sample_tokens``.
        tokens: (B,) int64 in [0, V).
        exponents: (E,) as in ``sample_tokens``.
        backend: See ``fastpower.kernels.backends``.
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
    arguments = (logits, alpha, exponents, rows, keys, positions, exclude)
    sizes = SAMPLE_TOKENS.check(*arguments)
    backend, run = route(op, backend, logits)
    if backend != "cpu" and logits.is_cpu:  # the C++ kernels check values themselves
        SAMPLE_TOKENS.check_values(sizes, *arguments)
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = run(*arguments)
    return result


def _sample_into(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
    out: TokenSamples | None,
    workspace: Tensor | None,
    backend: str,
) -> TokenSamples:
    arguments = (logits, alpha, exponents, rows, keys, positions, exclude)
    if out is None:  # only the workspace is the caller's
        out = TokenSamples(*SAMPLE_TOKENS.outputs_for(*arguments))
    elif not isinstance(out, tuple) or len(out) != len(TokenSamples._fields):
        raise TypeError(f"sample_tokens: out must be TokenSamples of five tensors, got {type(out).__name__}")
    call = _sample_tokens_out_op if compiling() else _sample_tokens_out
    call(*arguments, *out, workspace, backend)
    return TokenSamples(*out)


def _sample_tokens_out(
    logits: Tensor,
    alpha: Tensor,
    exponents: Tensor,
    rows: Tensor,
    keys: Tensor,
    positions: Tensor,
    exclude: Tensor | None,
    token: Tensor,
    logp: Tensor,
    logz: Tensor,
    entropy: Tensor,
    status: Tensor,
    workspace: Tensor | None,
    backend: str,
) -> None:
    native, out = direct(backend), (token, logp, logz, entropy, status)
    arguments = (logits, alpha, exponents, rows, keys, positions, exclude)
    free = workspace is None and not (logp.requires_grad or logz.requires_grad or entropy.requires_grad)
    if native is not None and free and native.direct_sample_tokens_into(*arguments, out) is not None:
        return
    sizes = SAMPLE_TOKENS_OUT.check(*arguments, *out, workspace)
    backend, run = route("sample_tokens", backend, logits)
    if backend != "cpu" and logits.is_cpu:
        SAMPLE_TOKENS.check_values(sizes, *arguments)
    run_into(backend, run, arguments, {}, out, workspace)


def _score_tokens(
    logits: Tensor, tokens: Tensor, exponents: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    op, native = "score_tokens", direct(backend)
    if native is not None:
        done: tuple[Tensor, Tensor, Tensor, Tensor] | None = native.direct_score_tokens(logits, tokens, exponents)
        if done is not None:
            return done
    sizes = SCORE_TOKENS.check(logits, tokens, exponents)
    backend, run = route(op, backend, logits)
    if backend != "cpu" and logits.is_cpu:
        SCORE_TOKENS.check_values(sizes, logits, tokens, exponents)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = run(logits, tokens, exponents)
    return result


_sample_tokens_op = SAMPLE_TOKENS.register(_sample_tokens)
_sample_tokens_out_op = SAMPLE_TOKENS_OUT.register(_sample_tokens_out)
_score_tokens_op = SCORE_TOKENS.register(_score_tokens)
