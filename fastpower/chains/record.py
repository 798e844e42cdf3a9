"""A record: one answer with the numbers stored when its tokens were generated, never computed again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastpower.chains.requests import Branch, Scored, Suffix

Array = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Record:
    """n tokens x_0 … x_{n−1} of an answer; E exponents.

    Everything at position t is conditional on the prompt and x_<t. ``branch`` holds prompt + answer.
    """

    tokens: list[int]
    logp: Array  #: (n,) log p(x_t)
    logz: Array  #: (n, E) log Σ_v p(v)^e
    entropy: Array  #: (n,) nats
    ended: bool  #: the last token is an EOS, or completes a stop string
    branch: Branch
    log_potential: float | None = None  #: log φ of the whole answer; None until it was asked for

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def total_logp(self) -> float:
        """log p(x), the EOS factor included."""
        return float(self.logp.sum())

    @classmethod
    def empty(cls, prompt: Branch, exponents: int = 1) -> Record:
        """No answer yet."""
        return cls([], np.zeros(0), np.zeros((0, exponents)), np.zeros(0), False, prompt)

    def first(self, length: int) -> Record:
        """The first ``length`` tokens, sharing this record's branch; the whole record if it has no more."""
        if length >= len(self):
            return self
        cut = slice(length)
        return Record(self.tokens[cut], self.logp[cut], self.logz[cut], self.entropy[cut], False, self.branch)

    def followed_by(self, tokens: list[int], scored: Scored, ended: bool) -> Record:
        """This record, then given tokens with the numbers that a ``Score`` found for them."""
        return Record(
            self.tokens + tokens,
            np.concatenate([self.logp, scored.logp]),
            np.concatenate([self.logz, scored.logz]),
            np.concatenate([self.entropy, scored.entropy]),
            ended,
            scored.branch,
        )

    def spliced(self, position: int, suffix: Suffix) -> Record:
        """The first ``position`` tokens of this record, then ``suffix``.

        The distribution at ``position`` itself depends on the shared prefix only, so where this record has its logz and
        entropy they are kept: numbers that may have been recomputed in another batch must not enter a ratio.
        """
        if suffix.branch is None:
            raise ValueError("a rollout that was given up has no branch to splice")
        kept = min(position + 1, len(self))
        fresh = kept - position
        return Record(
            self.tokens[:position] + suffix.tokens,
            np.concatenate([self.logp[:position], suffix.logp]),
            np.concatenate([self.logz[:kept], suffix.logz[fresh:]]),
            np.concatenate([self.entropy[:kept], suffix.entropy[fresh:]]),
            suffix.ended,
            suffix.branch,
        )
