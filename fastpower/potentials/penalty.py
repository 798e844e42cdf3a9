"""What a condition is worth that an answer meets or does not."""

from __future__ import annotations

import math


def penalty(met: bool, log_weight: float | None) -> float:
    """log φ: 0 where it is met; elsewhere −``log_weight``, or −inf where that is None (a hard constraint)."""
    if met:
        return 0.0
    return -math.inf if log_weight is None else -log_weight


def check_log_weight(log_weight: float | None) -> None:
    """Refuse a weight that does not favour what meets the condition.

    Raises:
        ValueError: It is one.
    """
    if log_weight is not None and not (math.isfinite(log_weight) and log_weight > 0.0):
        raise ValueError(
            f"log_weight must be nats > 0 by which an answer that meets the condition is favoured, or None for a hard "
            f"constraint; got {log_weight!r}"
        )
