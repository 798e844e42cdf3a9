"""Philox 4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011), vectorised with numpy.

Counter-based: a random number is a pure function of (key, position, purpose), so a draw does not depend on the batch,
the thread or the worker it ran in. C++ (``csrc/cpu/philox.h``) and Triton (``tl.randint4x``) compute the same bits.

    key      64 bits: low word k0, high word k1
    counter  (position, purpose, 0, 0), four 32-bit words
"""

from __future__ import annotations

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = np.uint64(0xFFFFFFFF)


def philox4x32(key, c0, c1=0, c2=0, c3=0):
    """Four uint64 arrays holding 32-bit words. ``key`` and the counters broadcast; key is any 64-bit integer."""
    key = np.asarray(key)
    key = key.astype(np.uint64) if key.dtype != object else np.asarray(key, dtype=np.uint64)
    k0, k1 = key & MASK, key >> np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(c).astype(np.uint64) & MASK for c in (c0, c1, c2, c3))
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & MASK, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + np.uint64(W0)) & MASK, (k1 + np.uint64(W1)) & MASK
    return np.broadcast_arrays(c0, c1, c2, c3)


def uniform32(word):
    """The uniform of one 32-bit word: (word + 0.5) * 2**-32, in (0, 1), float64."""
    return (np.asarray(word, dtype=np.float64) + 0.5) * 2.0**-32


def uniform53(w0, w1):
    """A 53-bit uniform of two words, in (0, 1), float64: for draws made on the host."""
    bits = ((np.asarray(w0, dtype=np.uint64) << np.uint64(32)) | np.asarray(w1, dtype=np.uint64)) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53
