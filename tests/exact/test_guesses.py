"""Guesses change no bit of a record, whatever they are."""

from __future__ import annotations

import pytest

from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import InvalidGuess
from fastpower.samplers import MetropolisHastings, Plain
from fastpower.scheduler import Scheduler
from fastpower.scheduler.guesses import verifies
from fastpower.target import PowerTarget

from .enumeration import toy_models
from .test_accelerations import OTHERS, PLAIN_SAMPLER, SHORT, answers, bits, metropolis, run, total, toy


class Constant:
    """Guesses one token for ever, longer than any horizon."""

    def __init__(self, token: int) -> None:
        self.token = token

    def guess(self, tokens, most):
        return [self.token] * 50

    def saw(self, tokens, begin):
        pass


@pytest.fixture(scope="module")
def without() -> dict[int, tuple]:
    return bits(MetropolisHastings(SHORT, block=3, moves=3, **PLAIN_SAMPLER))


@pytest.mark.parametrize("sampler_options", [{}, {"prefetch": 1}, {"prefetch": 4}, {"early_rejection": False}])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("guess", [1, 7])
def test_guesses_change_no_bit(without, sampler_options, rows, guess):
    sampler = MetropolisHastings(SHORT, block=3, moves=3, **sampler_options)
    assert bits(sampler, max_rows=rows, max_chains=1 + rows % 4, guess=guess) == without


@pytest.mark.parametrize("token", [0, 1, 2])  # 2 is the end of sequence of most
def test_a_guesser_that_is_wrong_or_ends_changes_no_bit(without, token):
    sampler = MetropolisHastings(SHORT, block=3, moves=3)
    assert bits(sampler, max_chains=2, guess=6, guesser=lambda prompt: Constant(token)) == without


@pytest.mark.parametrize("sampler", [pair[0] for pair in OTHERS.values()], ids=OTHERS.keys())
def test_guesses_change_no_bit_of_the_other_samplers(sampler):
    plain, _ = run(sampler, 6)
    guessed, _ = run(sampler, 6, max_chains=1, guess=7)
    assert answers(plain) == answers(guessed)


def test_what_was_seen_saves_forwards_and_the_books_add_up():
    plain, a = run(metropolis(prefetch=1), 6, max_chains=1)
    fast, b = run(metropolis(prefetch=1), 6, max_chains=1, guess=7)
    assert answers(plain) == answers(fast)
    assert b.totals.steps < a.totals.steps
    assert total(plain, "forwards") == total(fast, "forwards") + total(fast, "guesses_kept")
    extra = total(fast, "guesses_kept") + total(fast, "guesses_dropped")
    assert total(fast, "forwards") + total(fast, "prefill_tokens") + extra == pytest.approx(b.totals.tokens)


def test_memory_pressure_drops_guesses_first():
    plain, _ = run(metropolis(), 6, max_chains=3)
    tight, _ = run(metropolis(), 6, max_chains=3, guess=7, decoder=toy(cache_tokens=40))
    assert answers(plain) == answers(tight)


def test_full_batches_get_no_guesses():
    full, _ = run(metropolis(prefetch=1), 24, max_chains=24, guess=7, share_lanes=False)
    alone, _ = run(metropolis(prefetch=1), 2, max_chains=1, guess=7)
    assert total(full, "guesses_kept") / 24 < total(alone, "guesses_kept") / 2


class Raises(Constant):
    def guess(self, tokens, most):
        raise RuntimeError("no idea")


@pytest.mark.parametrize("bad, what", [(Constant(99), "token 99"), (Constant(-3), "token -3"), (Raises(0), "no idea")])
def test_a_bad_guesser_ends_only_the_chain_it_guessed_for(bad, what):
    decoder = toy_models()["no_eos"]
    jobs = [Job(Plain(PowerTarget(1.0, 6)), prompt, 1, str(prompt)) for prompt in ((0,), (1,))]
    good = Constant(0)
    make = lambda prompt: bad if tuple(prompt) == (0,) else good  # noqa: E731
    found = {f.job.prompt_id: f for f in Scheduler(decoder, guess=3, guesser=make).run(jobs)}
    assert isinstance(found["(0,)"].error, InvalidGuess) and what in str(found["(0,)"].error)
    assert found["(1,)"].error is None


class Remembers(Constant):
    """Right wherever a text is drawn again, then goes on beyond every horizon and end of sequence."""

    def __init__(self, texts) -> None:
        self.texts = texts

    def guess(self, tokens, most):
        found = (text for text in self.texts if list(text[: len(tokens)]) == list(tokens))
        return [*next(found, ())[len(tokens) :], *[1] * 50]


def test_a_guesser_that_is_always_right_saves_most_steps():
    sampler = metropolis(prefetch=1)
    [plain], a = run(sampler, 1)
    texts = []

    class Tells(Constant):
        def saw(self, tokens, begin):
            texts.append(list(tokens))

    run(sampler, 1, guess=7, guesser=lambda prompt: Tells(0))
    [fast], b = run(sampler, 1, guess=7, guesser=lambda prompt: Remembers(texts))
    assert answers([plain]) == answers([fast])
    assert b.totals.steps < a.totals.steps
    for rows in (2, 5, 32):
        found, _ = run(metropolis(), 5, max_rows=rows, guess=7, guesser=lambda prompt: Remembers(texts))
        assert answers(found) == answers(run(metropolis(), 5)[0])


@pytest.mark.parametrize("cache_tokens", [22, 30, 45])
def test_lanes_that_are_parked_come_back_with_the_same_draws(cache_tokens):
    plain, _ = run(metropolis(), 6)
    found, scheduler = run(
        metropolis(), 6, max_rows=4, guess=7, guesser=lambda prompt: Constant(1), decoder=toy(cache_tokens=cache_tokens)
    )
    assert answers(found) == answers(plain)
    assert cache_tokens > 22 or scheduler.totals.parkings + scheduler.residence.evictions > 0


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 32])
def test_guesses_never_make_a_step_larger_than_its_rows(rows):
    fed = []

    class Watched(ToyDecoder):
        def verify(self, work, rows, draws):
            fed.append(sum(rows))
            return super().verify(work, rows, draws)

    decoder = Watched(random_logits(5, 21, eos=4, eos_bias=-2.0, scale=4.0), 5, [4])
    run(metropolis(), 3, decoder=decoder, max_rows=rows, guess=7)
    assert max(fed, default=0) <= min(rows, 8)
    assert (max(fed) > 1) == (rows > 1)


def test_a_forward_that_somebody_put_over_the_decoders_own_sees_every_step():
    class Overridden(ToyDecoder):
        steps = 0

        def forward(self, work, draws):
            self.steps += 1
            return super().forward(work, draws)

    class Wrapped:
        def __init__(self):
            self.inner = toy()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def forward(self, work, draws):
            return self.inner.forward(work, draws)

    plain, _ = run(metropolis(), 3)
    decoder = Overridden(random_logits(5, 21, eos=4, eos_bias=-2.0, scale=4.0), 5, [4])
    found, scheduler = run(metropolis(), 3, decoder=decoder, guess=7)
    assert answers(found) == answers(plain) and decoder.steps == scheduler.totals.steps
    assert total(found, "guesses_kept") == total(found, "guesses_dropped") == 0
    patched = toy()
    patched.forward = patched.forward
    assert verifies(toy()) and not verifies(patched) and not verifies(Wrapped())
    wrapped, _ = run(metropolis(), 3, decoder=Wrapped(), guess=7)
    assert answers(wrapped) == answers(plain)
