"""What a study keeps of an answer: a few numbers, among them where along the answer p^alpha departs from p.

At position t the model's own law p_t and the sharpened one differ by logz_t = log Σ_v p_t(v)^alpha ≤ 0, which is 0
where the model is certain. The premise of entropy-driven samplers is that Σ_t logz_t comes from a few positions that
stand together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastpower.chains.record import Array
from fastpower.evaluate.summary import relative_ess

#: the share of Σ logz that the carrying positions hold together
SHARE = 0.9
#: columns of a method, in the order in which they are written
COLUMNS = (
    "problem", "chain", "correct", "logp", "logz", "tokens", "decoded", "steps", "ended", "acceptance", "ess", "carry",
    "lift", "decided", "equations",
)  # fmt: skip


def row_of(record: Mapping[str, Any], problem: int) -> dict[str, Any]:
    """One row of a study: ``COLUMNS`` of a record. ``problem`` is the problem's number in the study.

    ``logz`` is Σ_t logz_t in nats, ``decoded`` counts rejected tokens too, ``steps`` are the forwards that have to
    follow each other (None where the record does not say), ``acceptance`` of moves, ``ess`` a fraction of the
    particles, ``carry`` and ``lift`` as ``concentration`` gives them, ``decided`` the share of positions below 0.05
    nats, ``equations`` the equals signs of the text: how many steps a sum in words writes down.
    """
    logz, entropy = np.asarray(record["token_logz"], float), np.asarray(record["entropy"], float)
    carry, lift = concentration(-logz)
    return {
        "problem": problem,
        "chain": int(record["chain"]),
        "correct": int(bool(record["correct"])),
        "logp": round(float(record["logp"]), 3),
        "logz": round(float(logz.sum()), 3),
        "tokens": len(record["token_ids"]),
        "decoded": int(record["decoded_tokens"]),
        "steps": sequential_steps(record),
        "ended": int(bool(record["ended"])),
        "acceptance": _rounded(record.get("acceptance")),
        "ess": _rounded(relative_ess(record)),
        "carry": _rounded(carry),
        "lift": _rounded(lift),
        "decided": _rounded(float((entropy < 0.05).mean())) if len(entropy) else None,
        "equations": str(record["text"]).count("="),
    }


def concentration(mass: Array) -> tuple[float | None, float | None]:
    """Where a non-negative quantity sits along an answer.

    Args:
        mass: (n,) one number ≥ 0 per position.

    Returns:
        The smallest fraction of positions that carry ``SHARE`` of the sum, and how much likelier than chance the
        position behind a carrying one carries too (1: as by chance; above: they stand together). None where the sum
        is 0, or where no position or every one carries.
    """
    mass = np.asarray(mass, float)
    total = float(mass.sum())
    if not len(mass) or not total > 0:
        return None, None
    order = np.argsort(-mass, kind="stable")
    count = int(np.searchsorted(np.cumsum(mass[order]), SHARE * total * (1 - 1e-12))) + 1
    carries = np.zeros(len(mass), bool)
    carries[order[:count]] = True
    fraction = count / len(mass)
    followed, base = carries[:-1], carries[1:]
    if len(mass) < 3 or not followed.any() or not base.any() or base.all():
        return fraction, None
    return fraction, float(base[followed].mean() / base.mean())


def sequential_steps(record: Mapping[str, Any]) -> int | None:
    """Forwards that have to follow each other where rows are free: every token of a single chain; of a population
    the longest answer. None for samplers whose record does not tell."""
    method = str(record["method"]).partition("(")[0]
    if method in ("plain", "low_temperature", "mh", "ec_mh", "published_mh"):
        return int(record["decoded_tokens"])
    if method == "smc":
        return max((int(line["position"]) for line in record["trace"]), default=len(record["token_ids"]))
    return None


def _rounded(value: Any) -> float | None:
    return None if value is None else round(float(value), 3)
