"""The scheduler changes how work is done, never what comes out."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass

import numpy as np
import pytest

from fastpower.chains.job import Job
from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Rollout, Score
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import CacheFull, InvalidLogits, PromptTooLong
from fastpower.samplers import BestOfN, MetropolisHastings, MultipleTry, Plain
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

SAMPLER = MetropolisHastings(PowerTarget(3.0, 9), block=4, moves=4)


def decoder(**options) -> ToyDecoder:
    return ToyDecoder(random_logits(4, 11, eos=3, eos_bias=-1.0), 4, [3], **options)


def records(toy, jobs, **options) -> dict:
    scheduler = Scheduler(toy, **options)
    out = {}
    for finished in scheduler.run(jobs):
        if finished.error is not None:
            raise finished.error
        record = finished.outcome.record
        out[finished.job.prompt_id, finished.job.chain] = (tuple(record.tokens), record.logp.tobytes())
    del finished, record
    assert leaked(scheduler) == 0
    return out


def leaked(scheduler: Scheduler) -> int:
    gc.collect()  # tracebacks and finished chains may hold the last branches in cycles
    scheduler.residence.flush()
    return scheduler.decoder.stats()["sequences"]


def jobs(sampler=SAMPLER, count=12):
    return [Job(sampler, (p % 3, 1), 5, p, c) for p in range(count // 2) for c in range(2)]


@pytest.mark.parametrize("options", [{"max_rows": 1}, {"max_rows": 3}, {"share_lanes": False}, {"prefill_tokens": 1}])
@pytest.mark.parametrize(
    "sampler", [SAMPLER, MultipleTry(PowerTarget(3.0, 9), block=4, moves=2, tries=3), BestOfN(PowerTarget(2.0, 9), n=5)]
)
def test_batching_and_sharing_change_no_record(sampler, options):
    assert records(decoder(), jobs(sampler), **options) == records(decoder(), jobs(sampler))


@pytest.mark.parametrize("cache_tokens", [24, 40, 80])
def test_memory_pressure_changes_no_record(cache_tokens):
    scheduler = Scheduler(decoder(cache_tokens=cache_tokens), max_rows=8)
    results = {}
    for finished in scheduler.run(jobs()):
        assert finished.error is None
        record = finished.outcome.record
        results[finished.job.prompt_id, finished.job.chain] = (tuple(record.tokens), record.logp.tobytes())
    assert scheduler.residence.evictions + scheduler.totals.parkings > 0, "the cache was never under pressure"
    assert results == records(decoder(), jobs())


def test_a_request_that_cannot_fit_alone_fails_with_cache_full_and_the_others_finish():
    toy = decoder(cache_tokens=14)
    long = Job(Plain(PowerTarget(1.0, 9)), (0,) * 12, 0, "long")
    short = Job(Plain(PowerTarget(1.0, 3)), (0, 1), 0, "short")
    scheduler = Scheduler(toy)
    finished = {f.job.prompt_id: f for f in scheduler.run([long, short])}
    assert isinstance(finished["long"].error, CacheFull)
    assert finished["short"].error is None
    del finished
    assert leaked(scheduler) == 0


def test_shared_lanes_forward_common_prefixes_once():
    toy = ToyDecoder(lambda prefix: [0.0, 9.0, -9.0], 3, [])
    sampler = BestOfN(PowerTarget(1.0, 6), n=16)
    scheduler = Scheduler(toy)
    list(scheduler.run([Job(sampler, (0,))]))
    # Sixteen nearly deterministic answers of six tokens: about one row per step instead of sixteen.
    assert scheduler.totals.rows < 3 * 6
    assert scheduler.totals.draws == 16 * 6


def test_nan_logits_stop_only_the_chains_that_meet_them():
    def logits(prefix):
        return [float("nan")] * 3 if prefix[0] == 1 and len(prefix) > 2 else [0.0, 0.5, -0.5]

    toy = ToyDecoder(logits, 3, [])
    scheduler = Scheduler(toy)
    done = {f.job.prompt_id: f for f in scheduler.run([Job(SAMPLER, (p,), 0, p) for p in range(3)])}
    assert isinstance(done[1].error, InvalidLogits)
    assert "NaN" in str(done[1].error)
    assert done[0].error is None and done[2].error is None
    del done
    assert leaked(scheduler) == 0


def test_prompt_and_horizon_must_fit_the_context():
    toy = decoder(max_length=10)
    [finished] = Scheduler(toy).run([Job(SAMPLER, (0, 1, 2))])
    assert isinstance(finished.error, PromptTooLong)
    assert "context of 10" in str(finished.error)


class Scoring:
    """Draws an answer, then scores its own tokens again."""

    target = PowerTarget(2.0, 6)
    method = "scoring"

    def run(self, chain):
        suffix = yield Rollout(chain.prompt, 2, 6, chain.key("a"), 2.0, (2.0, 3.0))
        record = Record.empty(chain.prompt, 2).spliced(0, suffix)
        for start in range(len(record)):
            scored = yield Score(record.branch, 2 + start, record.tokens[start:], (2.0, 3.0))
            assert np.allclose(scored.logp, record.logp[start:], atol=1e-6)
            assert np.allclose(scored.logz, record.logz[start:], atol=1e-6)
            assert np.allclose(scored.entropy, record.entropy[start:], atol=1e-6)
            assert list(scored.branch.tokens) == list(record.branch.tokens)
        return Outcome(record)


@pytest.mark.parametrize("cache_tokens", [None, 30])
def test_scores_equal_the_stored_numbers(cache_tokens):
    toy = decoder(cache_tokens=cache_tokens)
    for finished in Scheduler(toy).run([Job(Scoring(), (0, 1), 3, i) for i in range(6)]):
        assert finished.error is None


def test_scores_that_wait_at_a_time_share_a_forward():
    found = {}
    for chains in (1, 6):
        scheduler = Scheduler(decoder(), max_chains=chains)
        done = list(scheduler.run([Job(Scoring(), (0, 1), 3, i) for i in range(6)]))
        assert all(finished.error is None for finished in done)
        found[chains] = (scheduler.totals.scorings, sorted((f.job.prompt_id, f.outcome.record.tokens) for f in done))
    assert found[1][1] == found[6][1]
    scored = sum(len(tokens) for _, tokens in found[1][1])
    assert found[1][0] == scored and found[6][0] <= scored / 3


@dataclass
class GivenTokens:
    """Scores some tokens."""

    tokens: tuple[int, ...]
    target = PowerTarget(2.0, 6)
    method = "given"

    def run(self, chain):
        scored = yield Score(chain.prompt, 1, self.tokens, (2.0,))
        return Outcome(Record.empty(chain.prompt), diagnostics={"logp": scored.logp.tolist()})


def test_bad_logits_of_one_score_concern_its_own_chain_only():
    toy = ToyDecoder(lambda prefix: [math.nan] * 3 if prefix[-1] == 2 else [0.0, 1.0, 2.0], 3)
    scheduler = Scheduler(toy)
    jobs = [Job(GivenTokens(tokens), (0,), 0, i) for i, tokens in enumerate([(1, 0), (2, 1), (0, 1)])]
    done = {finished.job.prompt_id: finished for finished in scheduler.run(jobs)}
    assert [type(done[i].error) for i in range(3)] == [type(None), InvalidLogits, type(None)]
    assert done[0].outcome.diagnostics["logp"] != done[2].outcome.diagnostics["logp"]
    del done
    assert leaked(scheduler) == 0


def test_interruption_reports_every_chain_as_far_as_it_got():
    toy = decoder()
    calls = 0

    def stop(scheduler):
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KeyboardInterrupt

    scheduler = Scheduler(toy, max_rows=4, on_step=stop)
    try:
        list(scheduler.run(jobs()))
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the interrupt was swallowed")
    assert scheduler.unfinished
    assert all(len(f.outcome.record) > 0 for f in scheduler.unfinished)
    assert not all(f.outcome.complete for f in scheduler.unfinished)
    del scheduler.unfinished
    assert leaked(scheduler) == 0


@pytest.mark.parametrize("option", ["max_rows", "max_chains", "prefill_tokens"])
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=f"{option} must be at least 1"):
        Scheduler(decoder(), **{option: 0})
