"""A draft model's guesses: right where it is, harmless where it is not."""

from __future__ import annotations

import pytest

import fastpower
from fastpower.decoders.draft import DraftGuesser
from fastpower.decoders.toy import ToyDecoder, random_logits

LOGITS = random_logits(5, 21, eos=4, eos_bias=-3.0, scale=6.0)


def toy(seed: int | None = None, **options) -> ToyDecoder:
    logits = LOGITS if seed is None else random_logits(5, seed, eos=4, eos_bias=-3.0)
    return ToyDecoder(logits, 5, [4], **options)


@pytest.mark.parametrize("seed", [None, 1], ids=["the same model", "another"])
@pytest.mark.parametrize("method", ["mh", "smc", "plain"])
def test_no_draft_changes_a_bit(seed, method):
    sampler = fastpower.make_sampler(method, max_new_tokens=11)
    drafted = fastpower.load(toy(), draft=toy(seed))
    plain = fastpower.generate(toy(), ["1 2", "3"], sampler, seed=4, chains=2, guess=0)
    found = fastpower.generate(drafted, ["1 2", "3"], sampler, seed=4, chains=2)
    assert [r.token_ids for r in found] == [r.token_ids for r in plain]
    assert [r.token_logp for r in found] == [r.token_logp for r in plain]
    assert sum(r.savings["guesses_kept"] + r.savings["guesses_dropped"] for r in found) > 0


def test_a_draft_guesses_its_likeliest_tokens_whatever_it_was_asked_before():
    decoder, guesser = toy(), DraftGuesser(toy(), toy())
    for tokens in ([0, 1], [0, 1, 2], [0, 3, 1, 1], [0, 1], [2]):
        text = list(tokens)
        for token in guesser("p", tokens, 4):
            assert token == max(range(5), key=decoder.log_probabilities(text).__getitem__)
            text.append(token)
        assert len(text) > len(tokens)


def test_a_draft_keeps_few_prompts_and_gives_everything_back():
    small = toy()
    guesser = DraftGuesser(small, toy(), prompts=3)
    for prompt in range(10):
        guesser(prompt, [0, 1, 2], 3)
    assert small.stats()["sequences"] == 3
    guesser.close()
    assert small.stats()["held_tokens"] == 0


def test_a_draft_without_room_guesses_nothing():
    guesser = DraftGuesser(toy(max_length=6), toy())
    assert guesser("p", [0, 1, 2, 3], 9) != [] == guesser("p", [0] * 9, 3)
    crowded = DraftGuesser(toy(cache_tokens=8), toy())
    for prompt in range(20):
        assert len(crowded(prompt, [0, 1, 2], 9)) <= 9


def test_a_draft_with_other_tokens_is_refused():
    with pytest.raises(ValueError, match=r"6 and 5 tokens.*same family"):
        fastpower.load(toy(), draft=ToyDecoder(random_logits(6, 1, eos=4), 6, [4]))
