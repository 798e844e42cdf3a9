"""The decoder protocol: sequences that fork and truncate, and one ragged forward that draws.

Positions count from 0 over prompt + answer. A sequence of length n holds the K/V of tokens 0 … n − 1; the logits row
that a forward leaves after feeding token n − 1 is the distribution of the token at position n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastpower.kernels.arguments import whole_number


class Work(NamedTuple):
    """One row of a forward: append ``tokens`` (at least one) to ``sequence``."""

    sequence: int
    tokens: Sequence[int]


class Draws(NamedTuple):
    """What to draw from the rows of one forward. B rows of logits, D draws, E exponents; D may be 0."""

    alpha: NDArray[np.float32]  #: (B,) exponent of the proposal: draws are from softmax(alpha * logits)
    exponents: NDArray[np.float32]  #: (E,) exponents whose logz is wanted for every row
    rows: NDArray[np.int64]  #: (D,) row of each draw, any order, repeats welcome
    keys: NDArray[np.uint64]  #: (D,) Philox key of each draw
    positions: NDArray[np.int64]  #: (D,) Philox counter of each draw: the position the drawn token will have
    exclude: NDArray[np.int64]  #: (D,) token removed from that draw, −1 for none


class TokenDraws(NamedTuple):
    """Results of one forward, on the host."""

    token: NDArray[np.int64]  #: (D,) −1 where nothing could be drawn (see status)
    logp: NDArray[np.float32]  #: (D,) log p(token), natural logarithm, exponent 1 and full vocabulary
    logz: NDArray[np.float32]  #: (B, E) log Σ_v p(v)^e
    entropy: NDArray[np.float32]  #: (B,) nats, of p
    status: NDArray[np.int32]  #: (B,) bit set of ``fastpower.kernels.Status``; 0 = fine


class SequenceScores(NamedTuple):
    """Statistics of T given tokens under the model; row i is the distribution left after tokens 0 … i."""

    logp: NDArray[np.float32]  #: (T − 1,) log-probability of tokens 1 … T − 1 (token 0 only starts the context)
    logz: NDArray[np.float32]  #: (T, E)
    entropy: NDArray[np.float32]  #: (T,)


@runtime_checkable
class Decoder(Protocol):
    """What another engine has to offer to be driven by fastpower's samplers.

    ``forward`` and ``score`` are all or nothing: on ``CacheFull`` no sequence has changed.
    """

    vocab_size: int
    eos_ids: frozenset[int]
    max_length: int  #: context length, prompt + answer

    @property
    def batch_invariant(self) -> bool:
        """True if a row's bits do not depend on what it is batched with, now."""

    def add(self) -> int:
        """A new empty sequence."""

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence sharing the first ``length`` tokens (0 ≤ length ≤ length(sequence)); nothing is copied."""

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` tokens."""

    def free(self, sequence: int) -> None:
        """Give a sequence back."""

    def length(self, sequence: int) -> int:
        """Tokens held."""

    def forward(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        """Append every row's tokens (prefill chunks and decode steps mixed) and draw from each row's last position.

        Raises:
            CacheFull: No room; nothing has changed.
            UnknownSequence: A handle that is not live.
            ValueError: Empty tokens, a sequence twice in one batch.
        """

    def score(self, work: Sequence[Work], exponents: NDArray[np.float32]) -> list[SequenceScores]:
        """Append every row's tokens and return their statistics, every row of logits used, none kept.

        tokens[1:] are scored given everything before them; to score a continuation of a sequence, truncate it by one
        and start ``tokens`` with its last token.

        Raises:
            CacheFull: As ``forward``, and so are its other errors.
            InvalidLogits: A row that is NaN or masked.
        """

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens removed."""

    def stats(self) -> dict[str, int]:
        """Sizes and counters: at least ``free_tokens`` (how many more tokens fit if nothing is shared)."""


@runtime_checkable
class VerifyingDecoder(Decoder, Protocol):
    """A decoder that draws at several fed positions of a row in one forward. Optional: nothing is guessed without."""

    def verify(self, work: Sequence[Work], rows: Sequence[int], draws: Draws) -> TokenDraws:
        """``forward`` with logits after each of the last ``rows[i]`` ≥ 1 tokens of ``work[i]``.

        The B = Σ rows rows of ``draws`` and of the result are those of work[0] in order of position, then of work[1], …
        A row has the bits that it would have if its tokens were fed one at a time, where ``batch_invariant``.

        Raises:
            CacheFull: As ``forward``, and so are its other errors.
            ValueError: ``rows`` outside [1, tokens of the row].
        """


class PooledDraws(NamedTuple):
    """Results of a pooled forward, on the host; G groups of rows."""

    token: NDArray[np.int64]  #: (G,) −1 where nothing could be drawn
    logp: NDArray[np.float32]  #: (G,) log of the token's probability under the normalised product
    log_mass: NDArray[np.float32]  #: (G,) log Σ_v Π_k p_k(v); −inf where the rows exclude each other's tokens
    status: NDArray[np.int32]  #: (G,) bit set of ``fastpower.kernels.Status``; 0 = fine


@runtime_checkable
class PoolingDecoder(Decoder, Protocol):
    """A decoder whose rows can decode one token together. Optional: ``marginal`` needs it."""

    def forward_pooled(
        self,
        work: Sequence[Work],
        starts: NDArray[np.int64],
        keys: NDArray[np.uint64],
        positions: NDArray[np.int64],
    ) -> PooledDraws:
        """Append every row's tokens and draw one token per group, from the product of its rows' distributions.

        What the rows' logits go through is ``fastpower.kernels.sample_pooled``, whose arguments these are.

        Args:
            work: B rows, those of a group one after the other.
            starts: (G + 1,) first row of each group, then B.
            keys: (G,) Philox key of each draw.
            positions: (G,) its counter.

        Raises:
            CacheFull: As ``forward``, and so are its other errors.
        """


@runtime_checkable
class PrefixDecoder(Decoder, Protocol):
    """A decoder that finds what finished sequences held again by its tokens. Optional.

    Used if ``batch_invariant``, because only then a remembered prefix has the bits that it would be computed with.
    """

    def remember(self, sequence: int, tokens: Sequence[int]) -> None:
        """Keep what ``sequence`` holds of ``tokens``, the first tokens it was fed, until the memory is needed."""

    def match(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(sequence, length): a new sequence that holds the longest remembered prefix of ``tokens`` (0: none)."""


_DTYPES = {
    "alpha": np.float32,
    "exponents": np.float32,
    "rows": np.int64,
    "keys": np.uint64,
    "positions": np.int64,
    "exclude": np.int64,
}


def check_draws(draws: Draws) -> None:
    """Refuse draws that are not NumPy arrays of their dtypes with one dimension.

    Nothing is converted: 2.9 would become row 2, and the bits of a float another key.

    Raises:
        TypeError: Another type or dtype; it is named.
        ValueError: Another shape; it is named.
    """
    for (name, dtype), array in zip(_DTYPES.items(), draws, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"draws.{name} must be a NumPy array of {np.dtype(dtype)}, got {got}")
        if array.ndim != 1:
            raise ValueError(f"draws.{name} must have one dimension, got shape {array.shape}")


def check_rows(work: Sequence[Work], rows: Sequence[int]) -> None:
    """Refuse ``rows`` that do not count some of the last tokens of every row of ``work``.

    Raises:
        ValueError: They do not.
    """
    if len(rows) != len(work):
        raise ValueError(
            f"rows must count the drawn positions of every row of work: {len(work)} rows, {len(rows)} counts"
        )
    for i, (item, n) in enumerate(zip(work, rows, strict=True)):
        if not 1 <= whole_number(f"rows[{i}]", n) <= len(item.tokens):
            raise ValueError(f"rows[{i}] must lie in [1, {len(item.tokens)}], the tokens fed to that row, got {n}")
