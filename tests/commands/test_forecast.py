"""What is foretold of a sampler's cost is what it costs where answers fill the horizon."""

from __future__ import annotations

import statistics

import pytest

from fastpower.chains import Job
from fastpower.commands.forecast import forecast, tokens_of
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.evaluate.evaluation import Evaluation
from fastpower.language_model import LanguageModel
from fastpower.samplers import METHODS, make_sampler
from fastpower.samplers.methods import parse_methods
from fastpower.scheduler import Scheduler
from tests.evaluate.toys import toy_model, toy_task

HORIZON = 32
BARE = {"mh": {"skip": False, "early_rejection": False}, "mtm": {"skip": False, "early_rejection": False}}
SETTINGS = {
    "plain": {},
    "low_temperature": {},
    "best_of_n": {"n": 3},
    "smc": {"particles": 4, "block": 8, "ramp": 0},
    "pimh": {"particles": 4, "block": 8, "moves": 2},
    "csmc": {"particles": 4, "block": 8, "moves": 2},
    "mh": {"moves": 3, "block": 8},
    "mtm": {"moves": 3, "block": 8, "tries": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_of_an_answer_that_fills_the_horizon(name):
    endless = ToyDecoder(random_logits(5, 2), 5, [])
    sampler = make_sampler(name, alpha=1.5, max_new_tokens=HORIZON, **SETTINGS[name], **BARE.get(name, {}))
    runs = run_counts(endless, sampler)
    assert statistics.fmean(runs) == pytest.approx(tokens_of(sampler), rel=0.2)


def run_counts(decoder, sampler):
    done = Scheduler(decoder, max_rows=256).run(Job(sampler, (0,), 3, 0, chain) for chain in range(40))
    return [finished.chain.counts.decoded_tokens for finished in done]


def test_every_method_is_foretold_or_says_that_it_cannot_be():
    told = {name: tokens_of(make_sampler(name, max_new_tokens=64)) for name in METHODS if name != "published_mh"}
    assert {name for name, tokens in told.items() if tokens is None} == {"sps", "apps"}


class Narrow:
    """The toy decoder with a bound of its context or its cache."""

    def __init__(self, decoder, context=10**9, room=10**9):
        self.decoder, self.max_length, self.room = decoder, context, room

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def stats(self):
        return self.decoder.stats() | {"free_tokens": self.room}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [({"context": 20}, "passes the model's context of 20; give at most 18"), ({"room": 30}, "32|34 tokens of K/V")],
)
def test_what_cannot_fit_is_refused_with_what_to_change(bounds, message):
    model = LanguageModel(Narrow(toy_model().decoder, **bounds))
    evaluation = Evaluation(toy_task(), parse_methods("plain"), max_new_tokens=32)
    with pytest.raises(ValueError, match=message):
        forecast(evaluation, model, seconds=0.1)


def test_rows_are_those_that_have_room_at_full_length():
    model = LanguageModel(Narrow(toy_model().decoder, room=200))
    found = forecast(Evaluation(toy_task(), parse_methods("plain,mh"), max_new_tokens=32), model, seconds=0.1)
    assert found.rows == 200 // (found.prompt + 32) and found.tokens_per_second > 0
    assert found.hours == pytest.approx(sum(method.hours for method in found.methods))
