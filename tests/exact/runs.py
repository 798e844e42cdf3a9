"""Runs of the real code on the toy decoder."""

from __future__ import annotations

from collections import Counter

from fastpower.chains import Job
from fastpower.chains.outcome import Outcome
from fastpower.decoders.toy import ToyDecoder
from fastpower.scheduler import Scheduler

PROMPT = (0,)


def outcomes(decoder: ToyDecoder, sampler, count: int, *, seed: int = 7, **options) -> list[Outcome]:
    """``count`` chains, in chain order."""
    options.setdefault("max_rows", 512)
    scheduler = Scheduler(decoder, **options)
    done = scheduler.run(Job(sampler, PROMPT, seed, 0, chain) for chain in range(count))
    results: list[Outcome | None] = [None] * count
    for finished in done:
        if finished.error is not None:
            raise finished.error
        results[finished.job.chain] = finished.outcome
    return results


def frequencies(decoder: ToyDecoder, sampler, count: int, **options) -> Counter[tuple[int, ...]]:
    return Counter(tuple(outcome.record.tokens) for outcome in outcomes(decoder, sampler, count, **options))
