"""Guesses change no bit of a record, whoever guesses what, and what they save is booked to the token."""

from __future__ import annotations

import dataclasses
import gc

import pytest

from fastpower.chains.job import Job
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.errors import InvalidGuess, InvalidLogits
from fastpower.random import derive
from fastpower.results import Result
from fastpower.samplers import BestOfN, MetropolisHastings
from fastpower.scheduler import Scheduler
from fastpower.scheduler.guesses import CHEAP_TOKENS, verifies
from fastpower.scheduler.seen import SeenBefore
from fastpower.target import PowerTarget

from .enumeration import toy_models
from .test_accelerations import (
    GUESSED,
    OTHERS,
    SEEDS,
    SHORT,
    answers,
    bits,
    metropolis,
    run,
    total,
    toy,
)

VOCABULARY, EOS = 5, 4


class Guesser:
    """A guesser for tests, which keeps what it was asked and what it is told of."""

    def __init__(self):
        self.asked, self.told = [], []

    def __call__(self, prompt, tokens, most):
        self.asked.append((prompt, tuple(tokens), most))
        return self.guess(list(tokens), most)

    def seen(self, prompt, tokens, begin):
        self.told.append((prompt, tuple(tokens), begin))


class Anything(Guesser):
    """Random tokens, EOS and impossible ones among them, more than were asked for."""

    def guess(self, tokens, most):
        return [derive(len(tokens), tokens[-1], i) % VOCABULARY for i in range(most + 3)]


class OnlyEOS(Guesser):
    def guess(self, tokens, most):
        return [EOS] * most


class AcrossEOS(Guesser):
    def guess(self, tokens, most):
        return [1, EOS, 2, 3][:most]


class Remembered(Guesser):
    """Right wherever a rollout of the past is drawn again, and far beyond horizon and EOS."""

    def __init__(self, past):
        super().__init__()
        self.past = past

    def guess(self, tokens, most):
        texts = (text for text in self.past if list(text[: len(tokens)]) == tokens)
        return [*next(texts, ())[len(tokens) :], *range(VOCABULARY), *[0] * 100]


class Nothing(Guesser):
    def guess(self, tokens, most):
        return []


def past(sampler, count=6, **options):
    told = Nothing()
    run(sampler, count, guess=told, **options)
    return [tokens for _, tokens, _ in told.told]


GUESSERS = {"anything": Anything, "only EOS": OnlyEOS, "across EOS": AcrossEOS, "nothing": Nothing}
WAYS = [{}, {"prefetch": 1}, {"prefetch": 4}, {"early_rejection": False}, {"skip": False}]


@pytest.mark.parametrize("name", [*GUESSERS, "remembered", "auto"])
@pytest.mark.parametrize("rows", [2, 5, 8, 32])
def test_no_guesser_changes_a_bit_of_metropolis_hastings(name, rows):
    plain, _ = run(metropolis(), 6)
    for way in WAYS:
        sampler = metropolis(**way)
        guess = name if name == "auto" else Remembered(past(sampler)) if name == "remembered" else GUESSERS[name]()
        found, scheduler = run(sampler, 6, max_rows=rows, guess=guess)
        assert answers(found) == answers(plain), way
        assert total(found, "decoded_tokens") == total(run(sampler, 6, max_rows=rows)[0], "decoded_tokens")
        fed = sum(total(found, count) for count in ("forwards", "prefill_tokens", *GUESSED))
        assert fed == pytest.approx(scheduler.totals.tokens)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("guess", ["auto", 2, "anything", "remembered"])
@pytest.mark.parametrize("rows", [3, 8])
def test_guesses_change_no_bit_of_the_other_samplers(name, guess, rows):
    sampler, off = OTHERS[name]
    plain, _ = run(sampler, 2, max_rows=rows)
    guess = {"anything": Anything(), "remembered": Remembered(past(sampler, 2))}.get(guess, guess)
    found, _ = run(sampler, 2, max_rows=rows, guess=guess)
    assert answers(found) == answers(plain)
    bare, _ = run(dataclasses.replace(sampler, **off), 2, max_rows=rows, guess=guess)
    assert answers(bare) == answers(plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mh", *OTHERS])
@pytest.mark.parametrize("rows", [2, 5, 8, 32])
def test_guesses_change_no_bit_of_any_sampler_over_many_seeds(name, rows):
    sampler, off = (MetropolisHastings(SHORT, block=3, moves=3), {}) if name == "mh" else OTHERS[name]
    plain = bits(sampler, max_rows=rows, guess=0)
    assert len(plain) == SEEDS
    for chains in (1, rows):  # alone, with rows to spare, and full
        for way in (sampler, dataclasses.replace(sampler, **off)):
            assert bits(way, max_rows=rows, max_chains=chains) == plain
            assert bits(way, max_rows=rows, max_chains=chains, guess=OnlyToken0()) == plain


class OnlyToken0(Guesser):
    def guess(self, tokens, most):
        return [0] * most


def test_without_guesses_exactly_the_forwards_saved_are_made_again():
    sampler = metropolis(prefetch=1)
    plain, before = run(sampler, 8, share_lanes=False)
    fast, after = run(sampler, 8, share_lanes=False, guess="auto")
    assert answers(plain) == answers(fast)
    assert total(fast, "guesses_kept") > 0 == total(plain, "guesses_kept")
    assert total(plain, "forwards") == total(fast, "forwards") + total(fast, "guesses_kept")
    assert after.totals.tokens == before.totals.tokens + total(fast, "guesses_dropped")
    for name in ("decoded_tokens", "moves", "accepted", "early_rejections", "skipped_tokens", "prefill_tokens"):
        assert total(plain, name) == total(fast, name), name


def long(**options) -> ToyDecoder:
    return ToyDecoder(random_logits(VOCABULARY, 3, eos=EOS, eos_bias=-9.0, scale=3.0), VOCABULARY, [EOS], **options)


def test_a_guesser_that_is_always_right_saves_most_forwards():
    sampler = BestOfN(PowerTarget(1.0, 60), n=1)
    [plain], before = run(sampler, 1, decoder=long())
    right = Remembered([(0, 1, 2, *plain.token_ids)])
    [fast], after = run(sampler, 1, decoder=long(), guess=right)
    assert answers([fast]) == answers([plain])
    assert after.totals.steps < before.totals.steps / 4
    # what lies behind the horizon or an EOS is not fed
    assert fast.savings["guesses_dropped"] == 0
    assert fast.savings["guesses_kept"] == before.totals.steps - after.totals.steps
    assert fast.decoded_tokens == plain.decoded_tokens


def test_a_guesser_that_is_always_wrong_costs_no_step_and_is_asked_for_little():
    sampler = BestOfN(PowerTarget(1.0, 60), n=1)
    [plain], before = run(sampler, 1, decoder=long())
    text = [0, 1, 2, *plain.token_ids]

    class Wrong(Guesser):
        def guess(self, tokens, most):
            return [(text[len(tokens)] + 1) % (VOCABULARY - 1)] * most

    wrong = Wrong()
    [found], after = run(sampler, 1, decoder=long(), guess=wrong)
    assert answers([found]) == answers([plain])
    assert after.totals.steps == before.totals.steps
    assert found.savings["guesses_kept"] == 0
    assert {most for _, _, most in wrong.asked[20:]} == {1}


@pytest.mark.parametrize("guess", [1, 2, 3, "auto"])
def test_a_row_is_fed_at_most_so_many_guesses_and_a_step_what_is_idle(guess):
    fed = []

    class Watched(ToyDecoder):
        def verify(self, work, rows, draws):
            fed.append((max(rows) - 1, sum(rows)))
            return super().verify(work, rows, draws)

    def watched(**options):
        decoder = Watched(random_logits(VOCABULARY, 3, eos=EOS, eos_bias=-9.0, scale=3.0), VOCABULARY, [EOS])
        fed.clear()
        run(metropolis(), 3, decoder=decoder, guess=guess, **options)
        return [n for n, _ in fed if n], [n for _, n in fed]

    guessed, rows = watched()
    assert guessed and max(guessed) <= (guess if guess != "auto" else CHEAP_TOKENS)
    assert max(rows) <= CHEAP_TOKENS
    assert max(watched(max_rows=4)[1]) <= 4


def test_nothing_is_guessed_in_full_batches():
    found, _ = run(metropolis(), 12, max_rows=1, guess="auto")
    assert all(total(found, name) == 0 for name in GUESSED)


@pytest.mark.parametrize("cache_tokens", [22, 30, 45, 80])
@pytest.mark.parametrize("guess", ["auto", Anything])
def test_guesses_give_way_when_memory_is_short(cache_tokens, guess):
    """Across evictions and parked lanes: the same answers, and nothing is held at the end."""
    plain, _ = run(metropolis(), 5)
    decoder = toy(cache_tokens=cache_tokens)
    guess = guess if guess == "auto" else guess()
    found, scheduler = run(metropolis(), 5, max_rows=4, decoder=decoder, guess=guess)
    assert answers(found) == answers(plain)
    assert cache_tokens > 30 or scheduler.totals.parkings + scheduler.residence.evictions > 0
    del scheduler, found
    assert decoder.stats()["held_tokens"] == 0


@pytest.mark.parametrize("decoder", toy_models().values(), ids=toy_models())
def test_what_is_never_drawn_may_be_guessed(decoder):
    """Tokens of probability zero too: their rows are not used."""
    sampler = MetropolisHastings(PowerTarget(2.0, 7), block=3, moves=4)

    class Zero(Guesser):
        def guess(self, tokens, most):
            return [0, 1] * most

    jobs = [Job(sampler, (0,), seed) for seed in range(8)]
    plain = {f.job.seed: f.outcome.record.tokens for f in Scheduler(decoder, guess=0).run(jobs)}
    found = {f.job.seed: f.outcome.record.tokens for f in Scheduler(decoder, guess=Zero()).run(jobs)}
    assert found == plain


def test_bad_logits_behind_a_guess_count_only_where_they_are_reached():
    """NaN behind a wrong guess harms nobody; behind a right one it is the error that it would be without guesses."""

    def model(bad):
        def logits(prefix):
            if bad(prefix):
                return [float("nan")] * 3
            return [9.0 if token == len(prefix) % 2 else -9.0 for token in range(2)] + [-99.0]

        return ToyDecoder(logits, 3, [2])

    class Twos(Guesser):
        def guess(self, tokens, most):
            return [(len(tokens) + i) % 2 for i in range(most)]

    sampler = BestOfN(PowerTarget(1.0, 12), n=1)
    reached = model(lambda prefix: len(prefix) == 7)
    errors = [str(f.error) for guess in (0, Twos()) for f in Scheduler(reached, guess=guess).run([Job(sampler, (0,))])]
    assert errors[0] == errors[1] and "position 7" in errors[0]
    [finished] = Scheduler(reached, guess=Twos()).run([Job(sampler, (0,))])
    assert isinstance(finished.error, InvalidLogits)

    class Wrong(Guesser):
        def guess(self, tokens, most):
            return [(len(tokens) + 1 + i) % 2 for i in range(most)]

    unreached = model(lambda prefix: any(t != i % 2 for i, t in enumerate(prefix)))
    [finished] = Scheduler(unreached, guess=Wrong()).run([Job(sampler, (0,))])
    assert finished.error is None and len(finished.outcome.record) == 12


BROKEN = {
    "raises": (lambda prompt, tokens, most: 1 // 0, "ZeroDivisionError"),
    "too large": (lambda prompt, tokens, most: [VOCABULARY], rf"returned {VOCABULARY}.*\[0, {VOCABULARY}\)"),
    "negative": (lambda prompt, tokens, most: [-1], "returned -1"),
    "no number": (lambda prompt, tokens, most: ["a"], "TypeError"),
    "a fraction": (lambda prompt, tokens, most: [1.5], "TypeError"),
    "no list": (lambda prompt, tokens, most: None, "TypeError"),
}


@pytest.mark.parametrize("broken, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_guesser_ends_the_chain_it_was_asked_for_and_no_other(broken, message):
    def guess(prompt, tokens, most):
        return broken(prompt, tokens, most) if prompt == "bad" else []

    decoder = toy()
    scheduler = Scheduler(decoder, guess=guess)
    jobs = [Job(metropolis(), (0, 1, 2), 3, name) for name in ("good", "bad", "fine")]
    finished = {f.job.prompt_id: f for f in scheduler.run(jobs)}
    with pytest.raises(InvalidGuess, match=message) as raised:
        raise finished["bad"].error
    assert "'bad'" in str(raised.value) and "guess=0" in str(raised.value)
    for name in ("good", "fine"):
        assert finished[name].error is None
        [alone] = Scheduler(toy(), guess=0).run([Job(metropolis(), (0, 1, 2), 3, name)])
        assert answers([Result.of(alone, decoder.decode)]) == answers([Result.of(finished[name], decoder.decode)])
    del finished, scheduler, raised
    gc.collect()  # errors hold frames
    assert decoder.stats()["held_tokens"] == 0


@pytest.mark.parametrize("guess", ["always", -1, True, 1.5, None])
def test_what_is_no_guesser_is_refused_by_name(guess):
    with pytest.raises(ValueError, match="guess must be"):
        Scheduler(toy(), guess=guess)


def test_lookups_prefer_the_longest_suffix_and_then_the_latest_place():
    table = SeenBefore(3)
    table.seen("p", [1, 2, 3, 4, 5], 0)
    assert table("p", [1, 2, 3], 2) == [4, 5]
    table.seen("p", [9, 2, 3, 7, 7, 7], 2)
    assert table("p", [1, 2, 3], 2) == [4, 5]  # all three tokens
    assert table("p", [8, 2, 3], 2) == [7, 7]  # the latest of two
    assert table("p", [6], 2) == [] == table("q", [1, 2, 3], 2)


def test_lookups_keep_a_bounded_number_of_prompts_and_tokens():
    table = SeenBefore(2, prompts=2, tokens=10)
    for prompt in range(5):
        table.seen(prompt, [1, 2, 3], 0)
    assert [table(prompt, [1], 1) for prompt in (3, 4)] == [[2], [2]]
    assert table(0, [1], 1) == []
    for i in range(100):
        table.seen(4, [i, i + 1, i + 2, i + 3], 0)
        assert list(table(4, [i], 1)) == [i + 1]
        assert all(len(kept.text) <= 10 + 5 and len(kept.places) <= 30 for kept in table._tables.values())
    with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
        SeenBefore(0)


def test_a_guesser_is_told_of_every_rollout_that_ended():
    told = Nothing()
    results, _ = run(metropolis(prefetch=1), 2, guess=told)
    ends = [tokens for _, tokens, _ in told.told]
    assert all(prompt == 0 and 0 <= begin < len(tokens) for prompt, tokens, begin in told.told)
    for result in results:
        assert any(tokens[-1:] == tuple(result.token_ids[-1:]) for tokens in ends)
    assert (0, (0, 1, 2), 0) in told.told  # the prompt


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
    assert all(total(found, name) == 0 for name in GUESSED)
    patched = toy()
    patched.forward = patched.forward
    assert verifies(toy()) and not verifies(patched) and not verifies(Wrapped())
    wrapped, _ = run(metropolis(), 3, decoder=Wrapped(), guess=7)
    assert answers(wrapped) == answers(plain)
