"""Runs of several threads on one model: each gets the records it would get alone, and nothing is left behind."""

from __future__ import annotations

import threading
import time

import pytest

from fastpower import generate, load, make_sampler, stream
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.scheduler.turns import Turns
from tests.tiny_models import tiny_model

METHODS = ["mh", "smc", "mtm", "plain", "tempering", "best_of_n"]


class HurriedToy(ToyDecoder):
    """Lets other threads in wherever Python may."""

    def forward(self, work, draws):
        time.sleep(0.0005)
        return super().forward(work, draws)


def toy(**options):
    return load(HurriedToy(random_logits(5, seed=3, eos=0, eos_bias=-2.0), 5, [0], max_length=64, **options))


def llama():
    return load(tiny_model("llama"), cache_tokens=4000)


def ask(model, i):
    sampler = make_sampler(METHODS[i % len(METHODS)], max_new_tokens=10)
    return [(r.id, r.token_ids, r.token_logp) for r in generate(model, [[1, 2 + i % 3]], sampler, seed=i, chains=2)]


@pytest.mark.parametrize("make", [toy, llama])
def test_six_threads_get_the_records_they_would_get_alone(make):
    model = make()
    one = make()
    alone = [ask(one, i) for i in range(12)]
    found: dict[int, list] = {}
    errors: list[BaseException] = []

    def handle(i):
        try:
            for j in (i, i + 6):
                found[j] = ask(model, j)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=handle, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [found[i] for i in range(12)] == alone
    assert model.decoder.stats()["sequences"] == 0


def test_a_cache_that_other_threads_fill_is_waited_for_and_not_an_error():
    model, errors = toy(cache_tokens=30), []

    def handle(i):
        try:
            ask(model, 3 * i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=handle, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and model.decoder.stats()["sequences"] == 0


def test_a_suspended_stream_holds_nobody_up():
    model = toy()
    answers = stream(model, [[1], [2], [3]], make_sampler("mh", max_new_tokens=8), seed=0)
    first = next(answers)
    inside = generate(model, [[4]], make_sampler("mh", max_new_tokens=8), seed=0)  # the same thread, in between
    done: list = []
    other = threading.Thread(target=lambda: done.append(ask(model, 0)))
    other.start()
    other.join(300)
    assert done and inside
    rest = list(answers)
    expected = generate(toy(), [[1], [2], [3]], make_sampler("mh", max_new_tokens=8), seed=0)
    assert {r.id: r.token_ids for r in [first, *rest]} == {r.id: r.token_ids for r in expected}


def test_a_run_that_fails_leaves_its_turn():
    model = toy()

    class Broken:
        target, method = make_sampler("plain", max_new_tokens=4).target, "broken"

        def run(self, chain):
            raise RuntimeError("a sampler of the user's")
            yield

    with pytest.raises(RuntimeError, match="of the user's"):
        generate(model, [[1]], Broken())
    assert Turns.of(model.decoder).alone() and not Turns.of(model.decoder).wait(0.0)
    assert Turns.of(model.decoder).lock.acquire(blocking=False)
    Turns.of(model.decoder).lock.release()
    assert ask(model, 0)
