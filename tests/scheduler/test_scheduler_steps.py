"""What goes into one step: chunks of prompts beside decoding rows, the oldest chain first, and little Python."""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import pytest

import fastpower
from fastpower import PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder
from fastpower.samplers import MetropolisHastings, Plain
from fastpower.scheduler import Scheduler

PACKAGE = str(Path(fastpower.__file__).parent)


class Recorded(ToyDecoder):
    """A toy that writes down how many tokens each row of each forward was fed."""

    def __init__(self, vocab_size: int = 5) -> None:
        super().__init__(lambda prefix: [0.1 * token for token in range(vocab_size)], vocab_size)
        self.fed: list[list[int]] = []

    def forward(self, work, draws):
        self.fed.append([len(row.tokens) for row in work])
        return super().forward(work, draws)


def plain(tokens: int) -> Plain:
    return Plain(PowerTarget(1.0, tokens))


def test_a_long_prompt_is_fed_in_chunks_beside_rows_that_decode():
    decoder = Recorded()
    jobs = [Job(plain(40), (0, 1), chain=0), Job(plain(5), (2,) * 101, chain=1)]
    finished = list(Scheduler(decoder, prefill_tokens=7).run(jobs))
    assert all(f.error is None for f in finished)
    chunks = [rows for rows in decoder.fed if max(rows) > 1]
    assert len(chunks) >= 101 // 8 and all(sum(rows) <= len(rows) + 7 for rows in decoder.fed)
    # (the first forward feeds the short prompt, too)
    assert all(rows[0] == 1 and len(rows) == 2 for rows in chunks[1:]), "the other row draws in every one of them"
    counts = {f.job.chain: f.chain.counts for f in finished}
    assert counts[0].decoded_tokens == 40
    assert counts[1].prefill_tokens + counts[1].forwards == 101 + 4, "every token is fed once, all but the last drawn"


def test_rows_go_to_the_oldest_chain_first():
    sampler = MetropolisHastings(PowerTarget(2.0, 12), block=4, moves=3, prefetch=1)
    scheduler = Scheduler(Recorded(), max_rows=1, max_chains=4, share_lanes=False)
    done: list[int] = []

    def nobody_overtakes(scheduler: Scheduler) -> None:
        first = min(live.order for live in scheduler.live) if scheduler.live else None
        for live in scheduler.live:
            assert live.order == first or live.chain.counts.decoded_tokens == 0

    scheduler.on_step = nobody_overtakes
    for finished in scheduler.run(Job(sampler, (0, 1), chain=i) for i in range(4)):
        assert finished.error is None
        done.append(finished.job.chain)
    assert done == [0, 1, 2, 3]


def lines_of_a_step(prompt_tokens: int, vocab_size: int) -> int:
    """Lines of this package, decoders and kernels apart, that the steady step of 3 rows runs; the same in each."""
    decoder = Recorded(vocab_size)
    lines: collections.Counter[int] = collections.Counter()
    step = 0

    def trace(frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or "decoders" in name or "kernels" in name:
            return None
        lines[step] += event == "line"
        return trace

    def count(scheduler: Scheduler) -> None:
        nonlocal step
        step += 1

    jobs = [Job(plain(30), (i,) * prompt_tokens, chain=i) for i in range(3)]
    scheduler = Scheduler(decoder, prefill_tokens=10**6, on_step=count)
    sys.settrace(trace)
    try:
        assert all(finished.error is None for finished in scheduler.run(jobs))
    finally:
        sys.settrace(None)
    steady = {lines[i] for i in range(5, 25)}
    assert len(steady) == 1, "a step runs more lines the longer the answer is"
    return steady.pop()


@pytest.mark.parametrize(("prompt_tokens", "vocab_size"), [(700, 5), (2, 300)])
def test_a_step_runs_as_many_lines_whatever_the_length_and_the_vocabulary(prompt_tokens, vocab_size):
    assert lines_of_a_step(prompt_tokens, vocab_size) == lines_of_a_step(2, 5)
