"""Ten thousand operations of every kind in a tenth of the memory: nothing leaks, hangs or comes out different."""

from __future__ import annotations

import gc
import random
from functools import cache

import pytest

from fastpower.chains.job import Job
from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Rollout, Score, Suffix
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import CacheFull
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget

LOGITS = cache(random_logits(4, 11, eos=3, eos_bias=-1.0))
EXPONENTS = (2.0, 1.5)
PROMPTS = ((0, 1, 2), (2, 0), (0, 1, 2, 1, 1))
CHAINS, OPERATIONS, HORIZON = 25, 400, 11


class RandomOperations:
    """Keeps a few branches and does something random to them, over and over: decode, decode in parallel, force, score,
    start ahead, cancel, forget. What it decides depends on (seed, chain) alone; all that it is told goes in a log."""

    target = PowerTarget(2.0, HORIZON)
    method = "random"

    def __init__(self, operations: int) -> None:
        self.operations = operations
        self.logs: dict[tuple, list] = {}
        self.done = 0

    def run(self, chain):
        rng = random.Random(f"{chain.seed} {chain.prompt_id} {chain.index}")
        log = self.logs[chain.prompt_id, chain.index] = []
        branches, ahead = [chain.prompt], []
        for i in range(self.operations):
            self.done += 1
            parent = rng.choice(branches)
            length = rng.randint(1, len(parent.tokens))
            room = chain.prompt_length + HORIZON - length
            kind = rng.choice(("decode", "decode", "several", "forced", "score", "start", "take", "cancel", "forget"))
            if kind in ("decode", "several", "start", "forced") and room < 1:
                kind = "forget"
            rollout = [self.rollout(rng, chain, parent, length, room, i, j, kind) for j in range(3)]
            if kind in ("decode", "forced"):
                self.keep((yield rollout[0]), branches, log)
            elif kind == "several":
                for suffix in (yield rollout):
                    self.keep(suffix, branches, log)
            elif kind == "score":
                tokens = [rng.randrange(3) for _ in range(rng.randint(1, 4))]
                scored = yield Score(parent, length, tokens, EXPONENTS)
                log.append((scored.logp.tobytes(), scored.logz.tobytes(), scored.entropy.tobytes()))
                if len(scored.branch) < chain.prompt_length + HORIZON:
                    branches.append(scored.branch)
            elif kind == "start":
                ahead.append(chain.start(rollout[0]))
            elif kind == "take" and ahead:
                self.keep((yield ahead.pop(rng.randrange(len(ahead)))), branches, log)
            elif kind == "cancel" and ahead:
                ahead.pop(rng.randrange(len(ahead))).cancel()
            while len(branches) > rng.randint(1, 6):
                branches.pop(rng.randrange(len(branches)))
            branches = branches or [chain.prompt]
        return Outcome(Record.empty(chain.prompt, len(EXPONENTS)))

    def rollout(self, rng, chain, parent, length, room, i, j, kind):
        new = rng.randint(1, max(room, 1))
        forced = [rng.randrange(3) for _ in range(rng.randint(1, new))] if kind == "forced" else ()
        limit = rng.random() * 8.0
        watch = (lambda token, logp, logz, entropy: logp < -limit) if rng.random() < 0.2 else None
        alpha = rng.choice((2.0, 1.0))
        exclude = rng.choice((-1, -1, 0)) if not forced else -1
        return Rollout(
            parent, length, new, chain.key("op", i, j), alpha, EXPONENTS, forced, exclude, watch, rng.random() < 0.3
        )

    def keep(self, suffix: Suffix, branches, log) -> None:
        log.append(
            (
                tuple(suffix.tokens),
                suffix.logp.tobytes(),
                suffix.logz.tobytes(),
                suffix.entropy.tobytes(),
                None if suffix.next_logz is None else suffix.next_logz.tobytes(),
                (suffix.ended, suffix.gave_up, suffix.next_entropy),
            )
        )
        if suffix.branch is not None and not suffix.ended:
            branches.append(suffix.branch)


def run(cache_tokens: int | None, operations: int = OPERATIONS, **options):
    """Logs of all chains, the scheduler, and the most tokens that were ever held."""
    toy = ToyDecoder(LOGITS, 4, [3], cache_tokens=cache_tokens)
    most = 0

    def look(scheduler: Scheduler) -> None:
        nonlocal most
        stats = toy.stats()
        most = max(most, stats["held_tokens"])
        # Every sequence in the decoder has exactly one owner: a lane, or a branch that somebody keeps.
        lanes = [lane.sequence for lane in (*scheduler._lanes, *scheduler._parked) if lane.sequence is not None]
        owners = [
            *lanes,
            *scheduler.residence._idle,
            *(set(scheduler.residence._released) - {*scheduler.residence._idle}),
        ]
        assert len(owners) == len(set(owners)) == stats["sequences"]

    sampler = RandomOperations(operations)
    scheduler = Scheduler(toy, max_rows=60, on_step=look, **options)
    for finished in scheduler.run(Job(sampler, PROMPTS[i % 3], 5, i % 3, i // 3) for i in range(CHAINS)):
        if finished.error is not None:
            raise finished.error
    assert sampler.done == CHAINS * operations
    del finished
    gc.collect()
    scheduler.residence.flush()
    assert toy.stats()["sequences"] == toy.stats()["held_tokens"] == 0
    return sampler.logs, scheduler, most


@pytest.fixture(scope="module")
def ample():
    return run(None)


def test_ten_thousand_operations_in_a_tenth_of_the_memory_change_nothing(ample):
    logs, scheduler, most = ample
    assert scheduler.totals.parkings == scheduler.residence.evictions == 0
    assert sum(map(len, logs.values())) > 5000
    short_logs, short, held = run(most // 10)
    assert held <= most // 10
    assert short.totals.parkings > 20 and short.residence.evictions > 100
    assert short_logs == logs


def test_neither_do_few_chains_small_chunks_or_unshared_lanes():
    assert run(None, 50, max_chains=3, prefill_tokens=1, share_lanes=False)[0] == run(None, 50)[0]


def test_memory_for_less_than_one_rollout_is_an_error_and_not_a_hang():
    with pytest.raises(CacheFull):
        run(6, operations=40)
