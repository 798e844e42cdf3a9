"""Resampling of particle sets: ``resample``."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastpower.kernels.contracts import RESAMPLE, RESAMPLE_SYSTEMATIC
from fastpower.kernels.dispatch import compiling, route

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
        backend: See ``fastpower.kernels.backends``.

    Raises:
        TypeError: A wrong dtype.
        ValueError: A wrong shape, device or scheme; on the host also NaN or +inf weights and uniforms outside [0, 1).
        BackendUnavailable: The backend cannot run here.
    """
    arguments = (log_weights, uniforms, scheme, backend)
    return Ancestors(*(_resample_op(*arguments) if compiling() else _resample(*arguments)))


def _resample(log_weights: Tensor, uniforms: Tensor, scheme: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    op = "resample"
    if scheme not in SCHEMES:
        raise ValueError(f"{op}: scheme must be one of {', '.join(map(repr, SCHEMES))}, got {scheme!r}")
    contract = RESAMPLE_SYSTEMATIC if scheme == "systematic" else RESAMPLE
    sizes = contract.check(log_weights, uniforms, scheme)
    backend, run = route(op, backend, log_weights)
    if backend != "cpu" and log_weights.is_cpu:
        contract.check_values(sizes, log_weights, uniforms)
    index, ess, log_mean = run(log_weights, uniforms, scheme=scheme)
    return index, ess, log_mean


_resample_op = RESAMPLE.register(_resample)
