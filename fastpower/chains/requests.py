"""What a sampler asks for and what it gets: the whole vocabulary between samplers and the scheduler.

A sampler is a generator. It yields a ``Rollout`` (decode some tokens) or a ``Score`` (evaluate given tokens) and
receives a ``Suffix`` or a ``Scored``; a list of requests receives the list of results; a ``Ticket`` of a request that
was started earlier with ``chain.start`` receives its result. Positions are absolute: prompt tokens count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastpower.errors import PromptTooLong
from fastpower.potential import Potential


class Watch(Protocol):
    """Looks on while a rollout decodes and may stop it (early rejection)."""

    def __call__(self, token: int, logp: float, logz: Sequence[float], entropy: float) -> bool:
        """The numbers of the position just drawn, in order; True gives the rollout up."""


class Branch:
    """A prefix of tokens and, while the cache has room for it, its K/V.

    The pages belong to the branch and are released when the last reference to it goes away; a sampler keeps a branch
    by keeping the object. If memory runs short the scheduler takes the pages back (``sequence`` becomes None) and
    recomputes them when the branch is used again; results do not change.
    """

    __slots__ = ("__weakref__", "_release", "held", "root", "sequence", "tokens")

    def __init__(
        self,
        tokens: Sequence[int],
        root: Branch | None = None,
        sequence: int | None = None,
        held: int = 0,
        release: Callable[[int], None] | None = None,
    ) -> None:
        self.tokens = tokens  #: every token, prompt included
        self.root = root  #: the prompt, if this branch begins with all of it and is not it
        self.sequence = sequence  #: decoder handle, None while evicted
        self.held = held  #: tokens whose K/V ``sequence`` holds (usually all but the last)
        self._release = release

    def __len__(self) -> int:
        return len(self.tokens)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter ends, what giving back would need is gone; bound here, the question is not.
        if self.sequence is not None and self._release is not None and not finalizing():
            self._release(self.sequence)


@dataclass(slots=True, eq=False)
class Rollout:
    """Decode up to ``max_new`` tokens after the first ``length`` tokens of ``parent``, stopping where an answer ends.

    It ends at an EOS, or with the first of the target's stop strings.

    Tokens are drawn from softmax(alpha · logits) with the stream ``key``; position t of the stream is position t of
    the sequence, so a rollout's tokens depend on (prefix, key) only.
    """

    parent: Branch
    length: int
    max_new: int
    key: int
    alpha: float
    exponents: tuple[float, ...]  #: which logz to record, per position
    forced: Sequence[int] = ()  #: tokens that come first without being drawn, one forward each
    exclude: int = -1  #: token removed from the first draw
    watch: Watch | None = None
    peek: bool = False  #: also report logz and entropy of the position after the last token (unless EOS)
    until: tuple[str, ...] = ()  #: stop strings in place of the target's, () for those


@dataclass(slots=True, eq=False)
class Suffix:
    """What a rollout drew (forced tokens are not repeated). n tokens, E exponents."""

    tokens: list[int]
    logp: NDArray[np.float64]  #: (n,)
    logz: NDArray[np.float64]  #: (n, E)
    entropy: NDArray[np.float64]  #: (n,) nats
    ended: bool  #: the last token is an EOS, or completes a stop string
    gave_up: bool  #: the watch stopped it; there is no branch then
    branch: Branch | None
    next_logz: NDArray[np.float64] | None = None  #: (E,) with ``peek``
    next_entropy: float | None = None


@dataclass(slots=True, eq=False)
class Score:
    """Evaluate ``tokens`` after the first ``length`` (≥ 1) tokens of ``parent``."""

    parent: Branch
    length: int
    tokens: Sequence[int]
    exponents: tuple[float, ...]


@dataclass(slots=True, eq=False)
class Scored:
    """Statistics of n given tokens, and the branch that ends with them."""

    logp: NDArray[np.float64]  #: (n,)
    logz: NDArray[np.float64]  #: (n, E)
    entropy: NDArray[np.float64]  #: (n,)
    branch: Branch


@dataclass(slots=True, eq=False)
class Weigh:
    """Ask the target's potential for log φ of an answer, or for its twist log ψ of an unfinished one."""

    tokens: list[int]  #: the answer's, without the prompt's
    ended: bool
    potential: Potential
    twist: bool = False


@dataclass(slots=True, eq=False)
class Pool:
    """Draw one token behind several branches at once, from the normalised product of what they say of it.

    The token depends on the branches and (key, position) only.
    """

    parents: tuple[Branch, ...]
    key: int
    position: int
    exponents: tuple[float, ...] = ()  #: none: nothing is recorded


@dataclass(slots=True, eq=False)
class Pooled:
    """What a ``Pool`` drew. Without the weight exp(log_mass) the draw is biased for the product."""

    token: int  #: −1 if the branches exclude each other's tokens
    logp: float  #: log r(token), r the normalised product
    log_mass: float  #: log Σ_v Π_k p_k(v)
    branches: tuple[Branch, ...]  #: the parents followed by the token; none without one


Request = Rollout | Score | Weigh | Pool
Response = Suffix | Scored | float | Pooled


def check(request: Rollout | Score | Pool, max_length: int) -> None:
    """Refuse a request that cannot be carried out.

    Raises:
        ValueError: It contradicts itself.
        PromptTooLong: It does not fit into the context.
    """
    if isinstance(request, Pool):
        longest = 1 + max((len(parent.tokens) for parent in request.parents), default=0)
        if not request.parents or not all(len(parent.tokens) for parent in request.parents):
            raise ValueError("a pool needs branches of at least one token each")
        if longest > max_length:
            raise PromptTooLong(f"{longest} tokens exceed the model's context of {max_length}; lower the horizon")
        return
    parent = len(request.parent.tokens)
    if not 1 <= request.length <= parent:
        raise ValueError(f"length must lie in [1, {parent}] (the parent's tokens), got {request.length}")
    if isinstance(request, Score):
        longest = request.length + len(request.tokens)
        if not len(request.tokens):
            raise ValueError("tokens to score must not be empty")
    else:
        if request.max_new < 1:
            raise ValueError(f"max_new must be at least 1, got {request.max_new}")
        if len(request.forced) > request.max_new:
            raise ValueError(f"{len(request.forced)} forced tokens exceed max_new = {request.max_new}")
        longest = request.length + request.max_new
    if longest > max_length:
        raise PromptTooLong(
            f"{request.length} tokens and {longest - request.length} new ones exceed the model's context of "
            f"{max_length}; shorten the prompt or lower the horizon"
        )
