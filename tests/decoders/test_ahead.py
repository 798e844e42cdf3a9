"""A decoder that is one step ahead of its caller says what it would have said."""

from __future__ import annotations

import numpy as np
import pytest

from fastpower.chains.job import Job
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import CacheFull, UnknownSequence
from fastpower.samplers import MetropolisHastings
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget
from tests.decoders.ahead_toy import AheadToy
from tests.exact.test_accelerations import OTHERS

LOGITS = random_logits(5, 21, eos=4, eos_bias=-1.0, scale=3.0)
SAMPLERS = {"mh": MetropolisHastings(PowerTarget(3.0, 9), block=3, moves=3)} | {
    name: sampler for name, (sampler, _) in OTHERS.items()
}


def toys(**options):
    return (cls(LOGITS, 5, [4], **options) for cls in (ToyDecoder, AheadToy))


def records(decoder, sampler, seeds, **options):
    found = {}
    for finished in Scheduler(decoder, **options).run(Job(sampler, (0, 1), seed, seed % 3) for seed in seeds):
        assert finished.error is None, finished.error
        record = finished.outcome.record
        found[finished.job.seed] = (record.tokens, record.logp.tobytes(), record.logz.tobytes(), record.ended)
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_record_of_any_sampler_changes_by_a_bit(name):
    """200 seeds; ends, splits and rejections all fall into surplus steps."""
    plain, ahead = toys()
    sampler = SAMPLERS[name]
    assert records(ahead, sampler, range(200), max_rows=64) == records(plain, sampler, range(200), max_rows=64)
    assert name != "mh" or (ahead.ahead.used > 100 and ahead.ahead.wasted > 10)
    assert not ahead.stats()["held_tokens"] and not ahead.stats()["sequences"]


@pytest.mark.parametrize("cache_tokens", [60, 90, 200])
def test_a_full_cache_parks_and_resumes_and_changes_nothing(cache_tokens):
    plain, ahead = toys(cache_tokens=cache_tokens)
    sampler = SAMPLERS["mh"]
    assert records(ahead, sampler, range(12), max_rows=16) == records(plain, sampler, range(12), max_rows=16)
    assert not ahead.stats()["held_tokens"]


def test_a_run_that_is_stopped_leaves_nothing_behind():
    held = []
    for decoder in toys():
        scheduler = Scheduler(decoder, max_rows=8)
        run = scheduler.run(Job(SAMPLERS["mh"], (0, 1), seed, 0) for seed in range(30))
        next(run)
        run.close()
        held.append(decoder.stats())
    assert held[0] == held[1]  # what unfinished records keep, and no surplus token


def draws(rows, position, *, keys=None, alpha=2.0, exclude=-1, exponents=(2.0,)):
    return Draws(
        np.full(rows, alpha, np.float32),
        np.array(exponents, np.float32),
        np.arange(rows),
        np.arange(rows, dtype=np.uint64) if keys is None else np.array(keys, np.uint64),
        np.full(rows, position),
        np.full(rows, exclude),
    )


class Pair:
    """The same calls to both decoders, results compared bit for bit."""

    def __init__(self, rows, **options):
        self.plain, self.ahead = (cls(random_logits(5, 3), 5, [], **options) for cls in (ToyDecoder, AheadToy))
        self.sequences = [[decoder.add() for _ in range(rows)] for decoder in (self.plain, self.ahead)]

    def forward(self, tokens, draw, rows=None):
        outs = []
        for decoder, sequences in zip((self.plain, self.ahead), self.sequences, strict=True):
            chosen = sequences if rows is None else [sequences[i] for i in rows]
            outs.append(decoder.forward([Work(s, t) for s, t in zip(chosen, tokens, strict=True)], draw))
            assert [decoder.length(s) for s in sequences] == [self.plain.length(s) for s in self.sequences[0]]
        for one, other in zip(*outs, strict=True):
            np.testing.assert_array_equal(one, other)
        return outs[1]

    def start(self, steps=2):
        out = self.forward([[0, 1]] * len(self.sequences[0]), draws(len(self.sequences[0]), 2))
        for position in range(3, 3 + steps):
            out = self.forward([[t] for t in out.token], draws(len(out.token), position))
        return out


CHANGES = {
    "nothing": {},
    "alpha": {"alpha": 3.0},
    "keys": {"keys": (7, 8, 9)},
    "an excluded token": {"exclude": 1},
    "exponents": {"exponents": (2.0, 1.5)},
    "positions": {"position": 11},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_a_caller_changes_is_computed_as_asked(change):
    pair = Pair(3)
    out = pair.start()
    out = pair.forward([[t] for t in out.token], draws(3, **{"position": 5, **change}))
    pair.forward([[t] for t in out.token], draws(3, 6))


def test_another_token_more_tokens_fewer_rows_and_another_order_are_what_they_are():
    pair = Pair(3)
    out = pair.start()
    out = pair.forward([[(t + 1) % 5] for t in out.token], draws(3, 5))
    out = pair.forward([[out.token[0]], [0, 1, 2], [out.token[2]]], draws(3, 6))
    out = pair.forward([[out.token[2]], [out.token[0]]], draws(2, 7, keys=(2, 0)), rows=[2, 0])
    pair.forward([[out.token[0]]], draws(1, 8, keys=(2,)), rows=[2])


def test_forks_cuts_and_scores_between_steps_see_what_was_fed_and_no_more():
    pair = Pair(3)
    out = pair.start()
    for decoder, sequences in zip((pair.plain, pair.ahead), pair.sequences, strict=True):
        sequences.append(decoder.fork(sequences[0], 4))
        decoder.truncate(sequences[1], 3)
        with pytest.raises(ValueError):
            decoder.fork(sequences[2], 5)  # the surplus token is nobody's
    tokens = [[out.token[0]], [3, 1], [out.token[2]], [2]]
    out = pair.forward(tokens, draws(4, 5))
    scores = [decoder.score([Work(s[0], [1, 2])], np.array([2.0], np.float32)) for decoder, s in
              zip((pair.plain, pair.ahead), pair.sequences, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(scores[0][0].logp, scores[1][0].logp)


def test_surplus_tokens_take_no_room_from_what_is_asked_for():
    pair = Pair(3, cache_tokens=15)
    pair.start(steps=3)  # 15 tokens are held: there is no room to go ahead, and it is no error
    with pytest.raises(CacheFull):
        pair.ahead.forward([Work(s, [0]) for s in pair.sequences[1]], draws(3, 6))
    pair = Pair(3, cache_tokens=16)
    pair.start(steps=2)
    for decoder, sequences in zip((pair.plain, pair.ahead), pair.sequences, strict=True):
        decoder.free(sequences.pop())
    pair.forward([[0] * 3, [1] * 5], draws(2, 9))


def test_errors_are_those_of_the_decoder_and_change_nothing():
    pair = Pair(2)
    out = pair.start()
    sequences = pair.sequences[1]
    with pytest.raises(UnknownSequence):
        pair.ahead.forward([Work(sequences[0], [0]), Work(99, [0])], draws(2, 5))
    with pytest.raises(ValueError, match="only once"):
        pair.ahead.forward([Work(sequences[0], [0]), Work(sequences[0], [0])], draws(2, 5))
    pair.forward([[t] for t in out.token], draws(2, 5))


def test_the_context_is_never_exceeded():
    ahead = AheadToy(random_logits(5, 3), 5, [], max_length=4)
    sequence = ahead.add()
    out = ahead.forward([Work(sequence, [0, 1])], draws(1, 2))
    for position in (3, 4):
        out = ahead.forward([Work(sequence, out.token.tolist())], draws(1, position))
        assert ToyDecoder.length(ahead, sequence) <= 4
