"""Lossless accelerations: no record changes by a bit, and what each saves is booked."""

from __future__ import annotations

import dataclasses

import pytest

from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.results import Result
from fastpower.samplers import (
    AuxiliaryParticles,
    BestOfN,
    ConditionalSMC,
    EntropyCut,
    EntropyGuided,
    MetropolisHastings,
    MultipleTry,
    ParallelTempering,
    ParticleMH,
    PowerSMC,
    smc,
)
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

from .enumeration import toy_models

#: Nothing is saved: as published code works, prefix fed again for every proposal.
PLAIN_SAMPLER = {"skip": False, "early_rejection": False, "prefetch": 1}
PLAIN_SCHEDULER = {"share_lanes": False, "resume": False, "lock_step": True, "guess": 0}
SHORT = PowerTarget(3.0, 7)
GUESSED = ("guesses_kept", "guesses_dropped")


SEEDS = 200
WAYS: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "no skip": ({"skip": False}, {}),
    "no early rejection": ({"early_rejection": False}, {}),
    "no shared lanes": ({}, {"share_lanes": False}),
    "no resuming": ({}, {"resume": False}),
    "lock-step": ({}, {"lock_step": True}),
    "no guesses": ({}, {"guess": 0}),
    "one guess a row, no early rejection": ({"early_rejection": False}, {"guess": 1}),
    "guesses, no prefetching, 4 rows": ({"prefetch": 1}, {"max_rows": 4}),
    **{f"prefetch {n}": ({"prefetch": n}, {"max_rows": 16}) for n in (1, 2, 4, 8)},
    **{f"{n} rows": ({}, {"max_rows": n}) for n in (1, 2, 3, 4, 8, 13, 16, 32)},
    "prefetch 4, 3 rows, nothing else": ({**PLAIN_SAMPLER, "prefetch": 4}, {**PLAIN_SCHEDULER, "max_rows": 3}),
}


def bits(sampler, **options) -> dict[int, tuple]:
    """seed → everything about its answer; the seeds go round the toy models."""
    found = {}
    for k, decoder in enumerate(toy_models().values()):
        jobs = [Job(sampler, (0,), seed, seed % 3) for seed in range(k, SEEDS, 5)]
        for finished in Scheduler(decoder, **options).run(jobs):
            assert finished.error is None, finished.error
            record, outcome = finished.outcome.record, finished.outcome
            numbers = [array.tobytes() for array in (record.logp, record.logz, record.entropy)]
            found[finished.job.seed] = (record.tokens, *numbers, record.ended, outcome.trace)
    return found


@pytest.fixture(scope="module")
def unaccelerated() -> dict[int, tuple]:
    return bits(MetropolisHastings(SHORT, block=3, moves=3, **PLAIN_SAMPLER), **PLAIN_SCHEDULER)


@pytest.mark.parametrize("sampler_options, scheduler_options", WAYS.values(), ids=WAYS.keys())
def test_no_acceleration_and_no_batch_size_changes_a_bit(unaccelerated, sampler_options, scheduler_options):
    found = bits(MetropolisHastings(SHORT, block=3, moves=3, **sampler_options), **scheduler_options)
    assert len(found) == SEEDS == len(unaccelerated)
    assert found == unaccelerated


def test_another_draw_is_seen_by_the_comparison(unaccelerated):
    """Negative control: one move more changes records."""
    found = bits(MetropolisHastings(SHORT, block=3, moves=4))
    assert sum(found[seed][0] != unaccelerated[seed][0] for seed in found) > SEEDS // 10


OTHERS = {
    "mtm": (MultipleTry(PowerTarget(3.0, 7), block=3, moves=3, tries=3), {"skip": False, "early_rejection": False}),
    "egps": (EntropyGuided(PowerTarget(3.0, 7), block=3, moves=3, tries=3), {"skip": False, "early_rejection": False}),
    "ec_mh": (EntropyCut(PowerTarget(3.0, 7), block=3, moves=3), PLAIN_SAMPLER),
    "tempering": (ParallelTempering(PowerTarget(4.0, 7), block=3, moves=3), {"skip": False, "early_rejection": False}),
    "smc": (PowerSMC(PowerTarget(3.0, 7), particles=5, block=2, ramp=4, islands=2), {}),
    "pimh": (ParticleMH(PowerTarget(3.0, 7), particles=3, block=2, ramp=4, moves=2), {}),
    "csmc": (ConditionalSMC(PowerTarget(3.0, 7), particles=3, block=2, moves=2), {}),
    "apps": (AuxiliaryParticles(PowerTarget(3.0, 7), particles=4, block=2, rollouts=2, lookahead=2), {}),
}


@pytest.mark.parametrize("sampler, off", OTHERS.values(), ids=OTHERS.keys())
def test_accelerations_change_no_bit_of_the_other_samplers(sampler, off):
    fast, _ = run(sampler, 10)
    plain, _ = run(dataclasses.replace(sampler, **off), 10, max_rows=7, **PLAIN_SCHEDULER)
    assert answers(plain) == answers(fast)
    assert total(plain, "forwards") > total(fast, "forwards")


def toy(**options) -> ToyDecoder:
    return ToyDecoder(random_logits(5, 21, eos=4, eos_bias=-2.0, scale=4.0), 5, [4], **options)


def metropolis(**options) -> MetropolisHastings:
    return MetropolisHastings(PowerTarget(3.0, 11), **{"block": 4, "moves": 4, **options})


def run(
    sampler, count: int, *, seed: int = 3, prompt=(0, 1, 2), decoder: ToyDecoder | None = None, **options
) -> tuple[list[Result], Scheduler]:
    """Results of ``count`` chains in order, and the scheduler that made them. Nothing is guessed, so that what the
    others save can be counted one by one; ``test_guesses.py`` counts guesses."""
    scheduler = Scheduler(decoder or toy(), **{"guess": 0, **options})
    found = {}
    for finished in scheduler.run(Job(sampler, prompt, seed, 0, chain) for chain in range(count)):
        assert finished.error is None, finished.error
        found[finished.job.chain] = Result.of(finished, scheduler.decoder.decode)
    return [found[chain] for chain in range(count)], scheduler


def answers(results: list[Result]) -> list[tuple]:
    return [(r.token_ids, r.token_logp, r.token_logz, r.entropy, r.trace) for r in results]


def total(results: list[Result], name: str) -> float:
    return sum(getattr(r, name, None) if hasattr(r, name) else (r.savings | r.diagnostics)[name] for r in results)


@pytest.mark.parametrize("sampler", [metropolis(), PowerSMC(PowerTarget(3.0, 11), particles=5, block=3, ramp=4)])
@pytest.mark.parametrize(
    "options", [{}, {"guess": "auto"}, *({name: value} for name, value in PLAIN_SCHEDULER.items()), PLAIN_SCHEDULER]
)
def test_rows_and_prefill_of_the_runs_add_up_to_what_the_decoder_was_fed(sampler, options):
    results, scheduler = run(sampler, 7, max_rows=6, **options)
    assert total(results, "forwards") == pytest.approx(scheduler.totals.rows)
    fed = sum(total(results, name) for name in ("forwards", "prefill_tokens", *GUESSED))
    assert fed == pytest.approx(scheduler.totals.tokens)


def test_without_resuming_exactly_the_resumed_tokens_are_fed_again():
    plain, _ = run(metropolis(), 6, share_lanes=False, resume=False)
    fast, _ = run(metropolis(), 6, share_lanes=False)
    assert answers(plain) == answers(fast)
    assert total(plain, "resumed_tokens") == 0 < total(fast, "resumed_tokens")
    assert total(plain, "prefill_tokens") == total(fast, "prefill_tokens") + total(fast, "resumed_tokens")
    assert total(plain, "forwards") == total(fast, "forwards")


def test_without_shared_lanes_exactly_the_shared_rows_are_forwarded_again():
    sampler = BestOfN(PowerTarget(3.0, 9), n=8)
    fast, _ = run(sampler, 3)
    plain, scheduler = run(sampler, 3, share_lanes=False)
    assert answers(plain) == answers(fast)
    assert total(plain, "shared_rows") == 0 < total(fast, "shared_rows")
    assert total(fast, "forwards") + total(fast, "shared_rows") == pytest.approx(scheduler.totals.rows)


def test_without_skipping_exactly_the_skipped_tokens_are_decoded_again():
    fast, _ = run(metropolis(), 12)
    plain, _ = run(metropolis(skip=False), 12)
    assert answers(plain) == answers(fast)
    assert total(plain, "skipped_tokens") == total(plain, "free_moves") == 0
    assert total(fast, "free_moves") > 0
    assert total(plain, "decoded_tokens") == total(fast, "decoded_tokens") + total(fast, "skipped_tokens")


def test_early_rejection_saves_at_most_the_tokens_it_claims():
    fast, _ = run(metropolis(), 12)
    plain, _ = run(metropolis(early_rejection=False), 12)
    assert answers(plain) == answers(fast)
    saved = total(plain, "decoded_tokens") - total(fast, "decoded_tokens")
    assert 0 < saved <= total(fast, "early_rejection_tokens")
    assert total(plain, "early_rejections") == 0 < total(fast, "early_rejections")


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_prefetching_forwards_exactly_the_dropped_tokens_more(depth):
    plain, _ = run(metropolis(prefetch=1), 12, share_lanes=False)
    fast, _ = run(metropolis(prefetch=depth), 12, share_lanes=False)
    assert answers(plain) == answers(fast)
    assert total(fast, "prefetch_dropped_tokens") > 0 == total(plain, "prefetch_dropped_tokens")
    assert total(fast, "forwards") == total(plain, "forwards") + total(fast, "prefetch_dropped_tokens")
    for name in ("decoded_tokens", "free_moves", "skipped_tokens", "early_rejections", "moves"):
        assert total(fast, name) == total(plain, name), name


def test_moves_are_decoded_ahead_in_idle_rows_only():
    """By default: for a chain alone, and not a row where other chains wait for it or memory is short."""
    plain, a = run(metropolis(prefetch=1), 1)
    alone, b = run(metropolis(), 1)
    assert answers(plain) == answers(alone)
    assert b.totals.steps < a.totals.steps and total(alone, "prefetch_dropped_tokens") > 0
    short, c = run(metropolis(), 1, decoder=toy(cache_tokens=30))
    assert answers(plain) == answers(short)
    assert (c.totals.steps, c.totals.rows) == (a.totals.steps, a.totals.rows)
    plain, a = run(metropolis(prefetch=1), 12, max_rows=1)
    full, b = run(metropolis(), 12, max_rows=1)
    assert answers(plain) == answers(full)
    assert (a.totals.steps, a.totals.rows) == (b.totals.steps, b.totals.rows)
    assert total(full, "prefetch_dropped_tokens") == 0


def test_lock_step_takes_more_steps_for_the_same_rows():
    free, a = run(metropolis(prefetch=1), 12, max_rows=4, share_lanes=False)
    locked, b = run(metropolis(prefetch=1), 12, max_rows=4, share_lanes=False, lock_step=True)
    assert answers(free) == answers(locked)
    assert a.totals.rows == b.totals.rows
    assert a.totals.steps < b.totals.steps


def test_hit_cap_says_that_the_horizon_ended_the_answer():
    results, _ = run(metropolis(), 12)
    assert {r.diagnostics["hit_cap"] for r in results} == {True, False}
    assert all(r.diagnostics["hit_cap"] == (r.token_ids[-1] != 4) for r in results)


@pytest.mark.parametrize("cls", [MultipleTry, EntropyGuided])
def test_early_rejection_of_several_tries_saves_tokens(cls):
    settings = {"block": 4, "moves": 4, "tries": 3}
    fast, _ = run(cls(PowerTarget(3.0, 11), **settings), 12)
    plain, _ = run(cls(PowerTarget(3.0, 11), early_rejection=False, **settings), 12)
    assert answers(plain) == answers(fast)
    saved = total(plain, "decoded_tokens") - total(fast, "decoded_tokens")
    assert 0 < saved <= total(fast, "early_rejection_tokens")


def test_islands_decoded_at_once_are_those_decoded_one_after_another(monkeypatch):
    sampler = PowerSMC(PowerTarget(3.0, 11), particles=6, block=3, ramp=4, islands=3)
    fast, at_once = run(sampler, 6)

    def one_after_another(parts):
        results = []
        for part in parts:
            results.append((yield from part))
        return results

    monkeypatch.setattr(smc, "together", one_after_another)
    slow, in_turn = run(sampler, 6)
    assert answers(fast) == answers(slow)
    assert [r.diagnostics for r in fast] == [r.diagnostics for r in slow]
    assert {r.diagnostics["island"] for r in fast} == {0, 1, 2}
    assert at_once.totals.steps < in_turn.totals.steps / 2
