"""Jobs for the scheduler and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastpower.chains.chain import Chain, Sampler
from fastpower.chains.outcome import Outcome


@dataclass(slots=True)
class Job:
    """One run: a sampler, a prompt, and the labels that key its randomness."""

    sampler: Sampler
    prompt: Sequence[int]
    seed: int = 0
    prompt_id: int | str = 0
    chain: int = 0


@dataclass(slots=True)
class Finished:
    """A job and what became of it: an outcome, or the error that stopped it."""

    job: Job
    chain: Chain
    outcome: Outcome | None
    error: Exception | None = None
    seconds: float = 0.0  #: wall clock from start to finish, shared with the jobs beside it
