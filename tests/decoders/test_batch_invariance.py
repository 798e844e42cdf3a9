"""Records of the packaged model, bit for bit the same in any batch, on any threads, with reuse and parking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastpower import _C, PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.samplers import MetropolisHastings, Plain
from fastpower.scheduler import Scheduler

TOPICS = ("a river", "prime numbers", "the moon", "bread", "a violin", "snow", "a lighthouse")
START = "You are asked to write one short and simple sentence for children who learn to read. It is about"


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = _C.num_threads()
    _C.set_num_threads(count)
    try:
        yield
    finally:
        _C.set_num_threads(before)


@pytest.fixture
def model(smollm2, request):
    """(model, tokenizer) in the dtype that the test is parametrised with."""
    from fastpower.models import load_model

    return smollm2 if request.param == "float32" else load_model(dtype=request.param)


def jobs(tokenizer, count: int, horizon: int) -> list[Job]:
    """Plain decoding for most records, Metropolis–Hastings (forks, truncations, shared lanes) for every eighth."""
    plain = Plain(PowerTarget(1.0, horizon))
    chain = MetropolisHastings(PowerTarget(4.0, horizon), block=max(1, horizon // 2), moves=2)
    found = []
    for i in range(count):
        prompt = tokenizer(f"{START} {TOPICS[i % len(TOPICS)]}.")["input_ids"]
        found.append(Job(chain if i % 8 == 3 else plain, prompt, 11, i % len(TOPICS), i))
    return found


def records(decoder: TransformersDecoder, work: list[Job], **options) -> tuple[dict, Scheduler]:
    decoder.cache.forget()
    scheduler, found = Scheduler(decoder, **options), {}
    for finished in scheduler.run(work):
        assert finished.error is None, finished.error
        x = finished.outcome.record
        found[finished.job.chain] = (tuple(x.tokens), x.logp.tobytes(), x.logz.tobytes(), x.entropy.tobytes())
    return dict(sorted(found.items())), scheduler


def check(model, tokenizer, count: int, horizon: int, sizes: tuple[int, ...], once: tuple[int, ...] = ()) -> None:
    """sizes: batches decoded on one thread with remembered prefixes, and on two without; once: the latter only."""
    work = jobs(tokenizer, count, horizon)
    with TransformersDecoder(model, tokenizer, cache_tokens=8192) as decoder:
        assert decoder.batch_invariant
        with threads(2):
            alone, _ = records(decoder, work, max_chains=1, max_rows=1)
        assert len(set(alone.values())) > count // 2, "the records hardly differ from one another"
        for size in (*once, *sizes):
            for workers, reuse in ((1, True), (2, False)) if size in sizes else ((2, False),):
                with threads(workers):
                    found, scheduler = records(decoder, work, max_chains=size, max_rows=size, resume=reuse)
                assert scheduler.totals.rows > min(2.0, 0.6 * size) * scheduler.totals.steps, "hardly full batches"
                assert found == alone, (size, workers, reuse)
    # Room for the longest two or three, so that lanes are parked and their prefixes computed again or found again.
    with TransformersDecoder(model, tokenizer, cache_tokens=80 + 16 * max(sizes) // 4, verify=False) as decoder:
        with threads(2):
            found, scheduler = records(decoder, work, max_chains=max(sizes), max_rows=max(sizes))
        assert scheduler.totals.parkings > 0
        assert found == alone, "parking"


@pytest.mark.parametrize("model", ["bfloat16"], indirect=True)
def test_a_few_records_have_the_same_bits_alone_and_together(model):
    check(*model, count=8, horizon=5, sizes=(8,))


@pytest.mark.parametrize("model", ["float32"], indirect=True)
def test_records_of_two_tokens_have_the_same_bits_alone_and_in_a_batch_of_32(model):
    check(*model, count=33, horizon=2, sizes=(32,))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["float32", "bfloat16"], indirect=True)
def test_fifty_records_have_the_same_bits_alone_and_in_batches_of_2_to_32(model):
    check(*model, count=50, horizon=14, sizes=(7, 32), once=(2, 4, 8, 16))
