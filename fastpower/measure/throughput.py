"""How fast a model decodes here, how close that is to the memory's speed, and what samplers make of it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastpower.chains.chain import Counts, Sampler
from fastpower.chains.job import Job
from fastpower.decoders.base import Decoder, Draws, TokenDraws, Work
from fastpower.language_model import LanguageModel
from fastpower.scheduler import Scheduler


@dataclass(frozen=True)
class DecodeRate:
    """Plain decoding of ``batch`` rows, one token each per step."""

    batch: int
    steps: int  #: that were timed
    tokens_per_second: float  #: of all rows together
    step_ms: float  #: median
    prefill_tokens_per_second: float
    step_bytes: int | None  #: what a step must read once: weights that multiply, and K/V of every row
    floor_ms: float | None  #: what reading them takes at the memory's bandwidth
    floor: float | None  #: fraction of the step that reading them takes at the memory's bandwidth; 1 cannot be beaten


@dataclass(frozen=True)
class SamplerRate:
    """A sampler kept busy with as many chains as it can run at once."""

    method: str
    seconds: float
    answers: int  #: finished in that time
    tokens_per_second: float  #: decoded, rejected ones included
    rows: float  #: mean rows of a forward, prefill included
    moves_per_second: float | None
    acceptance: float | None
    answers_per_hour: float | None  #: None if none was finished


def step_bytes(decoder: Any, rows: int, context: int) -> int | None:
    """Bytes that one decode step must read: weights, and K/V of ``context`` tokens per row.

    An untied embedding is only looked up. None for a decoder that has no ``weight_bytes`` and ``layout``.
    """
    weights, layout = getattr(decoder, "weight_bytes", None), getattr(decoder, "layout", None)
    if weights is None or layout is None:
        return None
    per_token = 2 * layout.num_layers * layout.num_kv_heads * layout.head_dim * layout.dtype.itemsize
    return int(weights + rows * context * per_token)


def decode_rate(
    decoder: Decoder, batch: int, *, prompt: int = 64, seconds: float = 5.0, bandwidth: float | None = None
) -> DecodeRate:
    """Feed ``batch`` prompts of random tokens and decode for about ``seconds``, at least four steps.

    Args:
        decoder: What is measured.
        batch: Rows.
        prompt: Tokens of each prompt.
        seconds: How long to decode.
        bandwidth: GB/s of the memory, for the floor.

    Raises:
        ValueError: The cache or the context is too small.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 row, got {batch}")
    room = min(decoder.stats()["free_tokens"] // batch, decoder.max_length) - prompt
    if room < 8:
        raise ValueError(
            f"batch {batch} with prompts of {prompt} tokens does not fit: {decoder.stats()['free_tokens']} tokens of "
            f"K/V are free and the context is {decoder.max_length}; give a smaller batch or a larger cache"
        )
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, decoder.vocab_size, (batch, prompt)).tolist()
    sequences = [decoder.add() for _ in prompts]
    times: list[float] = []
    try:
        start = time.perf_counter()
        drawn = _forward(decoder, sequences, prompts, prompt)
        prefill = time.perf_counter() - start
        steps = min(room - 2, 4096)  # near the end a page per row may already be taken
        for step in range(1, steps):
            before = time.perf_counter()
            drawn = _forward(decoder, sequences, [[token] for token in drawn.token.tolist()], prompt + step)
            times.append(time.perf_counter() - before)
            if len(times) >= 5 and time.perf_counter() - start > seconds:
                break
    finally:
        for sequence in sequences:
            decoder.free(sequence)
    timed = times[1:]  # the first step after a prefill warms up
    step_seconds = statistics.median(timed)
    read = step_bytes(decoder, batch, prompt + len(times) // 2)
    floor = read / (bandwidth * 1e9) if read is not None and bandwidth else None
    return DecodeRate(
        batch,
        len(timed),
        batch / step_seconds,
        1e3 * step_seconds,
        batch * prompt / prefill,
        read,
        None if floor is None else 1e3 * floor,
        None if floor is None else floor / step_seconds,
    )


def _forward(decoder: Decoder, sequences: Sequence[int], tokens: Sequence[Sequence[int]], position: int) -> TokenDraws:
    rows = len(sequences)
    draws = Draws(
        alpha=np.ones(rows, np.float32),
        exponents=np.array([4.0], np.float32),
        rows=np.arange(rows),
        keys=np.arange(rows, dtype=np.uint64),
        positions=np.full(rows, position),
        exclude=np.full(rows, -1),
    )
    return decoder.forward([Work(s, t) for s, t in zip(sequences, tokens, strict=True)], draws)


class _Enough(Exception):
    """The time is over."""


def sampler_rate(
    model: LanguageModel,
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    *,
    label: str | None = None,
    seconds: float = 5.0,
    max_rows: int = 64,
) -> SamplerRate:
    """Run chains of ``prompts`` in turn, new ones as old ones finish, for about ``seconds``."""

    def jobs() -> Iterator[Job]:
        for i in itertools.count():
            yield Job(sampler, prompts[i % len(prompts)], 0, i % len(prompts), i // len(prompts))

    done: list[Counts] = []
    answers = 0
    start = time.perf_counter()

    def stop(scheduler: Scheduler) -> None:
        if time.perf_counter() - start > seconds:
            done.extend(live.chain.counts for live in scheduler.live)
            raise _Enough

    scheduler = Scheduler(model.decoder, max_rows=max_rows, on_step=stop)
    run = scheduler.run(jobs())
    try:
        for finished in run:
            if finished.error is not None:
                raise finished.error
            done.append(finished.chain.counts)
            answers += 1
    except _Enough:
        last = [finished for finished in scheduler.unfinished if finished.outcome and finished.outcome.complete]
        done.extend(finished.chain.counts for finished in last)
        answers += len(last)
    finally:
        run.close()  # type: ignore[attr-defined]
    spent = time.perf_counter() - start
    moves, accepted = sum(counts.moves for counts in done), sum(counts.accepted for counts in done)
    return SamplerRate(
        method=label or sampler.method,
        seconds=spent,
        answers=answers,
        tokens_per_second=sum(counts.decoded_tokens for counts in done) / spent,
        rows=scheduler.totals.rows / max(scheduler.totals.steps, 1),
        moves_per_second=moves / spent if moves else None,
        acceptance=accepted / moves if moves else None,
        answers_per_hour=3600 * answers / spent if answers else None,
    )
