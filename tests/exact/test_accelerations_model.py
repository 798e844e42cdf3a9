"""The packaged model: accelerations, prefetch depths and batch sizes change no bit of an answer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastpower.chains.job import Job
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.models import load_model
from fastpower.samplers import EntropyGuided, MetropolisHastings, window
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

from .test_accelerations import PLAIN_SAMPLER, PLAIN_SCHEDULER, WAYS

pytestmark = [pytest.mark.model, pytest.mark.slow]
CHAINS = 5
LEFT_OUT = {"3 rows", "13 rows"}  # between 2 and 4, and between 8 and 16


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def decoder(request, smollm2):
    model, tokenizer = smollm2 if request.param == "float32" else load_model(dtype=request.param)
    assert model.dtype == getattr(torch, request.param)
    made = TransformersDecoder(model, tokenizer, cache_tokens=8192)
    if not made.batch_invariant:
        pytest.skip("no fused forward for this model here: a row's bits depend on its batch")
    return made


def bits(decoder, options, scheduler_options, sampler=None) -> list[tuple]:
    prompts = [decoder.encode(text) for text in ("3 + 4 =", "The capital of France is")]
    sampler = dataclasses.replace(sampler or MetropolisHastings(PowerTarget(4.0, 24), block=8, moves=3), **options)
    jobs = [Job(sampler, prompts[seed % 2], seed, seed) for seed in range(CHAINS)]
    found = {}
    for finished in Scheduler(decoder, **scheduler_options).run(jobs):
        assert finished.error is None, finished.error
        record, trace = finished.outcome.record, finished.outcome.trace
        numbers = [array.tobytes() for array in (record.logp, record.logz, record.entropy)]
        found[finished.job.seed] = (record.tokens, *numbers, record.ended, trace)
    return [found[seed] for seed in range(CHAINS)]


@pytest.fixture(scope="module")
def unaccelerated(decoder) -> list[tuple]:
    return bits(decoder, PLAIN_SAMPLER, {**PLAIN_SCHEDULER, "max_rows": 2})


def test_the_answers_compared_differ_and_have_moved(unaccelerated):
    assert len({tuple(answer[0]) for answer in unaccelerated}) == CHAINS
    assert {event["accepted"] for answer in unaccelerated for event in answer[-1]} == {True, False}


@pytest.mark.parametrize("name", [name for name in WAYS if name not in LEFT_OUT])
def test_no_acceleration_and_no_batch_size_changes_a_bit_of_the_packaged_model(decoder, unaccelerated, name):
    options, scheduler_options = WAYS[name]
    assert bits(decoder, options, scheduler_options) == unaccelerated


@pytest.mark.parametrize("options", [{}, {"guess": 7}, {"max_rows": 2}], ids=str)
def test_tails_scored_in_pieces_have_the_bits_of_tails_scored_at_once(decoder, monkeypatch, options):
    monkeypatch.setattr(window, "_FIRST_PIECE", 3)
    monkeypatch.setattr(window, "_GROWTH", 2)
    sampler = EntropyGuided(PowerTarget(4.0, 32), 16, 6, tries=3, window=4, window_share=0.8, prefetch=1)
    at_once = bits(decoder, {"early_rejection": False}, {**PLAIN_SCHEDULER, "max_rows": 4}, sampler)
    assert any(event.get("window") and event["accepted"] for answer in at_once for event in answer[-1])
    assert bits(decoder, {}, options, sampler) == at_once
