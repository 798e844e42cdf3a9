"""Jobs for the scheduler and what becomes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastpower.chains.chain import Chain, Sampler
from fastpower.chains.outcome import Outcome


@dataclass(slots=True)
class Job:
    """One answer to be drawn, whoever asked for it, keyed by (seed, prompt_id, chain). Can be pickled.

    Attributes:
        sampler: What draws it.
        prompt: The prompt as it was given: text, a conversation, token ids, or a ``Question``.
        seed: Of the call that it belongs to.
        prompt_id: The prompt's name; ``prompt_id(tokens)`` where the caller gave none.
        chain: Number among the answers to prompts of this name.
        method: Label of its records; the sampler's own where it is "".
        tokens: The prompt's token ids, which the scheduler needs; those of a prompt that is not given as ids are filled
            in by ``fastpower.generation.prepare``.
    """

    sampler: Sampler
    prompt: Any
    seed: int = 0
    prompt_id: int | str = 0
    chain: int = 0
    method: str = ""
    tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.method = self.method or self.sampler.method
        given = isinstance(self.prompt, (list, tuple)) and isinstance(next(iter(self.prompt), None), int)
        self.tokens = self.prompt if given and not self.tokens else self.tokens

    @property
    def id(self) -> str:
        """The name of its record."""
        return f"{self.prompt_id}/{self.chain}/{self.method}"


def prompt_id(tokens: Sequence[int]) -> str:
    """A name for a prompt made from its tokens: what is drawn for it does not depend on the prompts beside it."""
    return hashlib.blake2b(b",".join(str(t).encode() for t in tokens), digest_size=8).hexdigest()


@dataclass(slots=True)
class Finished:
    """A job and what became of it: an outcome, or the error that stopped it."""

    job: Job
    chain: Chain
    outcome: Outcome | None
    error: Exception | None = None
    seconds: float = 0.0  #: wall clock from start to finish, shared with the jobs beside it
