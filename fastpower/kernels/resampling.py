"""Resampling of particle sets: ``resample``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastpower.kernels.arguments import check_tensor
from fastpower.kernels.dispatch import compiling, register, route

SCHEMES = ("systematic", "stratified", "multinomial", "residual")


class Ancestors(NamedTuple):
    """Who is copied, and what the weights said before."""

    #: (…, N) int64 parent of each new particle, -1 throughout a set in which every weight is 0
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    ess: Tensor  #: (…,) float64 effective sample size (sum w)² / sum w², 0 for a set without weight
    log_mean: Tensor  #: (…,) float64 log of the mean weight: the factor that log Ẑ gains


def resample(log_weights: Tensor, uniforms: Tensor, *, scheme: str = "systematic", backend: str = "auto") -> Ancestors:
    """Ancestors of particle sets by their log-weights.

    The expected number of offspring of particle i is N W_i for every scheme, W the normalised weights; ``systematic``
    gives it floor(N W_i) or ceil(N W_i) of them. Thresholds and order are specified in
    ``fastpower.kernels.reference.resample`` (Douc, Cappé, Moulines 2005).

    Args:
        log_weights: (N,) or (R, N) float64, finite or -inf (no weight).
        uniforms: float64 in [0, 1), (1,) or (R, 1) for ``systematic``, shaped like ``log_weights`` otherwise. The
            caller draws them, so that randomness stays keyed.
        scheme: ``systematic``, ``stratified``, ``multinomial`` or ``residual``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, device or scheme; on the host also NaN or +inf weights and uniforms outside [0, 1).
        BackendUnavailable: the backend cannot run here.
    """
    arguments = (log_weights, uniforms, scheme, backend)
    return Ancestors(*(_resample_op(*arguments) if compiling() else _resample(*arguments)))


def _resample(log_weights: Tensor, uniforms: Tensor, scheme: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    op, float64 = "resample", (torch.float64,)
    if scheme not in SCHEMES:
        raise ValueError(f"{op}: scheme must be one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")
    two = isinstance(log_weights, Tensor) and log_weights.dim() == 2
    check_tensor(op, "log_weights", log_weights, float64, ("R", "N") if two else ("N",))
    if log_weights.shape[-1] == 0:
        raise ValueError(f"{op}: log_weights must hold at least one particle, got shape {tuple(log_weights.shape)}")
    shape = (*log_weights.shape[:-1], 1) if scheme == "systematic" else log_weights.shape
    check_tensor(op, "uniforms", uniforms, float64, shape, log_weights.device)
    backend, run = route(op, backend, log_weights)
    if backend != "cpu" and log_weights.is_cpu:
        _check(log_weights, "log_weights", "finite or -inf", log_weights < torch.inf)
        _check(uniforms, "uniforms", "in [0, 1)", (uniforms >= 0) & (uniforms < 1))
    index, ess, log_mean = run(log_weights, uniforms, scheme=scheme)
    return index, ess, log_mean


def _check(values: Tensor, name: str, what: str, good: Tensor) -> None:
    if not good.all():
        row, i = (~good).reshape(-1, values.shape[-1]).nonzero()[0].tolist()
        value = float(values.reshape(-1, values.shape[-1])[row, i])
        raise ValueError(f"resample: {name}[{row}, {i}] must be {what}, got {value:f}")


def _fake_resample(log_weights: Tensor, uniforms: Tensor, scheme: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    sets = log_weights.shape[:-1]
    return (
        log_weights.new_empty(log_weights.shape, dtype=torch.int64),
        log_weights.new_empty(sets),
        log_weights.new_empty(sets),
    )


_resample_op = register(
    "resample(Tensor log_weights, Tensor uniforms, str scheme, str backend) -> (Tensor, Tensor, Tensor)",
    _resample,
    _fake_resample,
)
