"""The scheduler over a decoder that remembers prefixes: less is computed, and no bit of any record changes."""

from __future__ import annotations

import gc

import pytest

from fastpower import PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders.base import PrefixDecoder
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler
from tests.tiny_models import tiny_model

SAMPLER = MetropolisHastings(PowerTarget(3.0, 20), block=10, moves=3)
START = [5 + i * 7 % 300 for i in range(40)]


def decoder(cache_tokens: int = 4096) -> TransformersDecoder:
    made = TransformersDecoder(tiny_model("llama"), cache_tokens=cache_tokens)
    assert made.batch_invariant and isinstance(made, PrefixDecoder)
    return made


def jobs(prompts=range(3)) -> list[Job]:
    return [Job(SAMPLER, (*START, 11 + p, 12), 5, p, c) for p in prompts for c in range(2)]


def run(made: TransformersDecoder, wanted: list[Job]) -> tuple[dict, Scheduler]:
    scheduler = Scheduler(made)
    out = {}
    for finished in scheduler.run(wanted):
        assert finished.error is None, finished.error
        record = finished.outcome.record
        out[finished.job.prompt_id, finished.job.chain] = (
            tuple(record.tokens),
            record.logp.tobytes(),
            record.logz.tobytes(),
        )
    made.cache.check()
    return out, scheduler


def fed(made: TransformersDecoder, monkeypatch) -> list[int]:
    """Collects how many tokens each forward feeds."""
    counts: list[int] = []
    forward = made.forward

    def counting(work, draws):
        counts.append(sum(len(row.tokens) for row in work))
        return forward(work, draws)

    monkeypatch.setattr(made, "forward", counting)
    return counts


def forgetful(made: TransformersDecoder, monkeypatch) -> TransformersDecoder:
    monkeypatch.setattr(made, "match", lambda tokens: (made.add(), 0))
    return made


def test_a_later_run_begins_where_an_earlier_one_computed_and_gets_the_same_bits(monkeypatch):
    made, plain = decoder(), forgetful(decoder(), monkeypatch)
    counts, plain_counts = fed(made, monkeypatch), fed(plain, monkeypatch)
    first, second = run(made, jobs())[0], run(made, jobs())[0]
    assert first == second == run(plain, jobs())[0]
    once = sum(plain_counts)
    run(plain, jobs())
    # Two full pages of 16 of three prompts' 40 common tokens, at least, are not fed again.
    assert sum(plain_counts) - once - (sum(counts) - once) >= 3 * 32


def test_another_prompt_reuses_the_common_beginning(monkeypatch):
    made = decoder()
    run(made, jobs([0]))
    counts = fed(made, monkeypatch)
    reused = run(made, jobs([1]))[0]
    assert counts[0] == len(START) + 2 - 32
    assert reused == run(decoder(), jobs([1]))[0]


def test_parked_and_evicted_work_comes_back_with_the_same_bits():
    ample = run(decoder(), jobs())[0]
    short, scheduler = run(decoder(cache_tokens=130), jobs())
    assert short == ample
    assert scheduler.totals.parkings + scheduler.residence.evictions > 0


def test_remembered_pages_do_not_count_as_lost_and_leave_when_asked():
    made = decoder()
    _, scheduler = run(made, jobs())
    gc.collect()
    scheduler.residence.flush()
    stats = made.stats()
    assert stats["sequences"] == stats["live_pages"] == 0 and stats["cached_pages"] > 0
    assert stats["free_tokens"] == 4096
    made.cache.forget()
    assert made.stats()["free_pages"] == made.stats()["pages"]


def test_a_decoder_without_prefixes_or_without_batch_invariance_is_driven_as_before():
    assert not isinstance(ToyDecoder(random_logits(4, 11, eos=3), 4, [3]), PrefixDecoder)
    made = TransformersDecoder(tiny_model("llama"), cache_tokens=4096, accelerate=False)
    assert not made.batch_invariant
    run(made, jobs([0]))
    assert made.stats()["cached_pages"] == 0


@pytest.mark.parametrize("sequence_tokens", [1, 15, 16, 17])
def test_a_match_always_leaves_a_token_to_feed(sequence_tokens):
    made = decoder()
    prompt = START[:sequence_tokens]
    one = [Job(SAMPLER, tuple(prompt), 5, 0, 0)]
    assert run(made, one)[0] == run(made, one)[0]
