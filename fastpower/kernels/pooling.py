"""Several rows of logits that decode one token together: ``pool_rows``, and ``sample_pooled`` made of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastpower.kernels.contracts import POOL_ROWS
from fastpower.kernels.dispatch import compiling, route
from fastpower.kernels.sampling import sample_tokens


class PooledRows(NamedTuple):
    """One row per group of rows. Natural logarithms."""

    pooled: Tensor  #: (G, V) float32 Σ_k log p_k(v), -inf where a row of the group masks v
    log_mass: Tensor  #: (G,) float32 log Σ_v Π_k p_k(v) ≤ 0, -inf where nothing is left
    status: Tensor  #: (G,) int32 bits of ``Status``, NAN and MASKED: of any row of the group


class PooledSamples(NamedTuple):
    """One draw per group from r(v) = Π_k p_k(v) / Σ_w Π_k p_k(w)."""

    token: Tensor  #: (G,) int64, -1 where nothing could be drawn
    logp: Tensor  #: (G,) float32 log r(token); NaN where token is -1
    log_mass: Tensor  #: (G,) float32, as in ``PooledRows``: the factor that r does not have
    status: Tensor  #: (G,) int32 bits of ``Status``


def pool_rows(logits: Tensor, starts: Tensor, *, backend: str = "auto") -> PooledRows:
    """Pool groups of rows: the sum of their log-softmax, and the log of the mass that their product has.

    With p_k = softmax(logits[k]) and group g the rows starts[g] ≤ k < starts[g + 1]: ``pooled[g, v] = Σ_k log p_k(v)``
    and ``log_mass[g] = log Σ_v Π_k p_k(v)``. A group of one row is its log-softmax, and its mass is 1. Groups may
    differ in size. Rows that exclude each other's tokens have a mass of 0, which is no error: ``log_mass`` is -inf,
    ``status`` 0.

    A row with NaN or +inf, or without a finite entry, raises nothing: its group's ``status`` says so, and the rest is
    NaN there. A group's results depend on its rows and their order alone, bit for bit.

    Args:
        logits: (B, V) float32, bfloat16 or float16, any row stride, last stride 1. -inf masks a token.
        starts: (G + 1,) int64, rising from 0 to B: where each group begins and the last one ends. Checked on the host
            only.
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape or device, ``starts`` that do not rise from 0 to B.
        BackendUnavailable: The backend cannot run here.
    """
    return PooledRows(*(_pool_rows_op if compiling() else _pool_rows)(logits, starts, backend))


def sample_pooled(
    logits: Tensor, starts: Tensor, keys: Tensor, positions: Tensor, *, backend: str = "auto"
) -> PooledSamples:
    """Draw one token per group of rows, from the normalised product of their distributions.

    It is ``pool_rows``, and ``sample_tokens`` of what that gives: drawing so, and multiplying by exp(``log_mass``), is
    unbiased for the product; drawing without that weight is not.

    Args:
        logits: (B, V) as in ``pool_rows``.
        starts: (G + 1,) as in ``pool_rows``.
        keys: (G,) int64, a Philox key of each draw.
        positions: (G,) int64, its counter.
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: As ``pool_rows`` and ``sample_tokens``.
        BackendUnavailable: The backend cannot run here.
    """
    pool = pool_rows(logits, starts, backend=backend)
    ones = torch.ones(len(pool.log_mass), dtype=torch.float32, device=logits.device)
    rows = torch.arange(len(ones), dtype=torch.int64, device=logits.device)
    drawn = sample_tokens(pool.pooled, ones, ones[:0], rows, keys, positions, backend=backend)
    return PooledSamples(drawn.token, drawn.logp, pool.log_mass, pool.status)


def _pool_rows(logits: Tensor, starts: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    sizes = POOL_ROWS.check(logits, starts)
    backend, run = route("pool_rows", backend, logits)
    if backend != "cpu" and logits.is_cpu:  # the C++ kernels check values themselves
        POOL_ROWS.check_values(sizes, logits, starts)
    result: tuple[Tensor, Tensor, Tensor] = run(logits, starts)
    return result


_pool_rows_op = POOL_ROWS.register(_pool_rows)
