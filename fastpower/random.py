"""Keyed randomness: every random number of a run is a pure function of (seed, labels, position, purpose).

``derive`` folds labels such as (prompt id, chain, "move", 17, try) into a 64-bit Philox key; ``uniform`` reads one
number of that stream. Nothing here has a state, so batch size, retries, prefetching and worker count cannot change
what is drawn.
"""

from __future__ import annotations

import enum
import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fastpower.kernels.reference.philox import philox4x32, uniform53

_MASK32, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class Purpose(enum.IntEnum):
    """Second counter word: what a number is used for, so that two uses at one position never share bits."""

    DRAW = 0  #: token draws; the only purpose that kernels use
    KEEP = 1  #: keep the current token? (coupling of a proposal with the current record)
    ACCEPT = 2  #: Metropolis acceptance
    CUT = 3  #: cut position
    SELECT = 4  #: which of several tries
    RESAMPLE = 5  #: ancestors
    SWAP = 6  #: exchange between temperatures
    ANSWER = 7  #: which particle is returned
    KIND = 8  #: which kind of move


def philox(key: int, c0: int, c1: int = 0, c2: int = 0, c3: int = 0) -> tuple[int, int, int, int]:
    """One Philox 4x32-10 block on Python integers (faster than numpy for a single block)."""
    k0, k1 = key & _MASK32, (key >> 32) & _MASK32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


@lru_cache(maxsize=4096)
def _label(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def derive(seed: int, *labels: int | str) -> int:
    """A 64-bit key from a seed and a path of labels. Different paths give unrelated streams.

    Examples:
        >>> derive(7, "move", 0, 3) == derive(7, "move", 0, 3) != derive(7, "move", 3, 0)
        True
    """
    key = seed & _MASK64
    for depth, label in enumerate(labels):
        x = (_label(label) if isinstance(label, str) else label) & _MASK64
        w0, w1, _, _ = philox(key, x & _MASK32, x >> 32, 0x70F3, depth)
        key = w0 | (w1 << 32)
    return key


def uniform(key: int, position: int, purpose: Purpose) -> float:
    """A 53-bit uniform in (0, 1)."""
    w0, w1, _, _ = philox(key, position & _MASK32, int(purpose))
    return ((((w0 << 32) | w1) >> 11) + 0.5) * 2.0**-53


def uniforms(key: int, start: int, count: int, purpose: Purpose) -> NDArray[np.float64]:
    """``uniform`` at positions start, …, start + count − 1, vectorised."""
    w0, w1, _, _ = philox4x32(np.uint64(key), np.arange(start, start + count, dtype=np.uint64), int(purpose))
    result: NDArray[np.float64] = uniform53(w0, w1)
    return result


def select(probabilities: NDArray[np.float64], u: float) -> int:
    """The index that the uniform ``u`` selects: the first whose running sum exceeds it, or the last after rounding.

    Examples:
        >>> [select(np.array([0.25, 0.0, 0.75]), u) for u in (0.2, 0.25, 0.9)]
        [0, 2, 2]
    """
    index = int(np.searchsorted(np.cumsum(probabilities), u, side="right"))
    return min(index, len(probabilities) - 1)
