"""What is read off logits: draws, and statistics of given tokens, a chunk of logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpower import kernels
from fastpower.decoders.base import Draws, PooledDraws, SequenceScores, TokenDraws, check_draws
from fastpower.decoders.transfer import to_device, to_host
from fastpower.decoders.transformers.packing import PackedBatch
from fastpower.errors import InvalidLogits

#: bytes of logits that exist at a time
SCORE_BYTES = 128 << 20

Statistics = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def draw(logits: Tensor, draws: Draws, device: torch.device, backend: str) -> TokenDraws:
    """``Decoder.forward``'s draws from (S, V) logits."""
    check_draws(draws)
    alpha, exponents, rows, keys, positions, exclude = to_device(
        [
            np.ascontiguousarray(draws.alpha, np.float32),
            np.ascontiguousarray(draws.exponents, np.float32),
            np.ascontiguousarray(draws.rows, np.int64),
            np.ascontiguousarray(draws.keys, np.uint64).view(np.int64),
            np.ascontiguousarray(draws.positions, np.int64),
            np.ascontiguousarray(draws.exclude, np.int64),
        ],
        device,
    )
    return TokenDraws(
        *to_host(kernels.sample_tokens(logits, alpha, exponents, rows, keys, positions, exclude, backend=backend))
    )


def pool(logits: Tensor, places: Sequence[NDArray[Any]], device: torch.device, backend: str) -> PooledDraws:
    """``PoolingDecoder.forward_pooled``'s draws from (B, V) logits.

    Args:
        logits: Of the rows, group after group.
        places: starts (G + 1,), keys (G,), positions (G,).
        device: Where the logits are.
        backend: Of the kernels.
    """
    starts, keys, positions = (np.ascontiguousarray(x).view(np.int64) for x in places)
    uploaded = to_device([starts, keys, positions], device)
    return PooledDraws(*to_host(kernels.sample_pooled(logits, *uploaded, backend=backend)))


def score(
    batch: PackedBatch,
    exponents: NDArray[np.float32],
    logits: Callable[[PackedBatch, int, int], Tensor],
    vocab_size: int,
    device: torch.device,
    backend: str,
) -> list[SequenceScores]:
    """``Decoder.score`` of a reserved batch. logits(batch, a, b): (b − a, V) after tokens a … b − 1, in order."""
    total, step = len(batch.tokens), max(1, SCORE_BYTES // (4 * vocab_size))
    following = np.append(batch.tokens[1:], 0)
    exponents = np.ascontiguousarray(exponents, np.float32)

    def chunk(a: int, b: int) -> Statistics:
        """Of tokens a … b − 1: logp of the next token (of no meaning at the end of a row), logz and entropy."""
        given = to_device([following[a:b], exponents], device)
        scored = kernels.score_tokens(logits(batch, a, b), *given, backend=backend)
        logp, logz, entropy, status = to_host(scored)
        _check(batch, a, status)
        return logp, logz, entropy

    parts = [chunk(a, min(a + step, total)) for a in range(0, total, step)]
    logp, logz, entropy = (np.concatenate(part) for part in zip(*parts, strict=True))
    return [SequenceScores(logp[a : b - 1], logz[a:b], entropy[a:b]) for a, b in pairwise(batch.starts)]


def _check(batch: PackedBatch, first: int, status: NDArray[np.int32]) -> None:
    """Refuse broken rows of the logits after tokens first, first + 1, and so on.

    Raises:
        InvalidLogits: One is; the first is named.
    """
    if not status.any():
        return
    bad = int(status.nonzero()[0][0])
    row = np.searchsorted(batch.starts, first + bad, "right") - 1
    raise InvalidLogits(
        f"the logits after position {batch.positions[first + bad]} of sequence {batch.sequences[row]} hold NaN or "
        f"+inf, or no finite entry (status {status[bad]})"
    )


def part(batch: PackedBatch, a: int, b: int) -> PackedBatch:
    """Tokens a … b − 1. Pages of all tokens are reserved, so a part sees those before it by giving shorter lengths."""
    bounds = batch.starts
    first, last = int(np.searchsorted(bounds, a, "right")) - 1, int(np.searchsorted(bounds, b, "left"))
    starts = np.clip(bounds[first : last + 1], a, b) - np.int32(a)
    behind = np.maximum(bounds[first + 1 : last + 1] - np.int32(b), 0)  # tokens of the row in later chunks
    return PackedBatch(
        batch.tokens[a:b],
        batch.positions[a:b],
        batch.slots[a:b],
        batch.sequences[first:last],
        np.diff(starts).astype(np.int64),
        starts,
        batch.lengths[first:last] - behind,
        batch.page_table[first:last],
    )
