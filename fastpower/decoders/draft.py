"""A small model that guesses what a large one of the same tokenizer will draw."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastpower.decoders.base import Decoder, Draws, Work
from fastpower.errors import CacheFull

_SHARP = 64.0  # exponent of its draws: the likeliest token, but for ties
_PROBES = ("The sum of 17 and 4 is 21.\n\tdef f(x):\n", "naïve ≤ 東京 🙂")


class DraftGuesser:
    """A ``Guesser`` that asks a small model for its likeliest tokens, one forward of it for each.

    Worth it where a forward of the model that samples costs many times the draft's; what was seen before
    (``guess="auto"``) costs nothing.

    Args:
        draft: Decoder of the small model; nothing else may decode with it meanwhile.
        target: Decoder of the model that samples.
        prompts: How many prompts' texts the draft's cache keeps, those asked for last.

    Raises:
        ValueError: The two have not the same tokens.
    """

    def __init__(self, draft: Decoder, target: Decoder, *, prompts: int = 16) -> None:
        _check_same_tokens(draft, target)
        self._draft = draft
        self._prompts = prompts
        self._held: OrderedDict[int | str, tuple[int, list[int]]] = OrderedDict()  # prompt → sequence, its tokens

    def __call__(self, prompt: int | str, tokens: Sequence[int], most: int) -> list[int]:
        """Its likeliest continuation of ``tokens``, up to ``most`` tokens; none where it has no room."""
        guess: list[int] = []
        most = min(most, self._draft.max_length - len(tokens))
        if most < 1:
            return guess
        try:
            sequence, held = self._sequence(prompt, tokens)
            feed = list(tokens[len(held) :])
            while len(guess) < most:
                token = self._next(sequence, held, feed)
                if token < 0:
                    break
                guess.append(token)
                if token in self._draft.eos_ids:
                    break
                feed = [token]
        except CacheFull:
            self.close()
        return guess

    def close(self) -> None:
        """Give back what the draft's cache holds."""
        for prompt in list(self._held):
            self._drop(prompt)

    def _next(self, sequence: int, held: list[int], feed: list[int]) -> int:
        position = len(held) + len(feed)
        draws = Draws(
            np.array([_SHARP], np.float32),
            np.zeros(0, np.float32),
            np.zeros(1, np.int64),
            np.zeros(1, np.uint64),
            np.array([position], np.int64),
            np.full(1, -1, np.int64),
        )
        out = self._draft.forward([Work(sequence, feed)], draws)
        held += feed
        return int(out.token[0]) if int(out.status[0]) == 0 else -1

    def _sequence(self, prompt: int | str, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """A sequence that holds as many of the tokens before the last as it did before, and which they are."""
        if prompt not in self._held:
            if len(self._held) >= self._prompts:
                self._drop(next(iter(self._held)))
            self._held[prompt] = self._draft.add(), []
        self._held.move_to_end(prompt)
        sequence, held = self._held[prompt]
        common = 0
        for mine, wanted in zip(held, tokens[: len(tokens) - 1], strict=False):
            if mine != wanted:
                break
            common += 1
        if common < len(held):
            self._draft.truncate(sequence, common)
            del held[common:]
        return sequence, held

    def _drop(self, prompt: int | str) -> None:
        sequence, _ = self._held.pop(prompt)
        self._draft.free(sequence)


def _check_same_tokens(draft: Decoder, target: Decoder) -> None:
    def facts(decoder: Any) -> tuple[Any, ...]:
        try:
            return (decoder.vocab_size, *(tuple(decoder.encode(text)) for text in _PROBES))
        except (ValueError, KeyError):  # a toy without a tokenizer, or one that knows numbers only
            return (decoder.vocab_size,)

    mine, wanted = facts(draft), facts(target)
    if mine != wanted:
        said = f"{mine[0]} and {wanted[0]} tokens" if mine[0] != wanted[0] else "the same text has other token ids"
        raise ValueError(f"draft: its tokenizer is not the model's ({said}); take a smaller model of the same family")
