"""Guesses of what a rollout draws next, fed behind its last token and verified in the same forward.

A token is a function of (logits row, key, position), so a guess changes no draw: positions are kept while the drawn
token is the guessed one, plus the first that differs; the rest is truncated. While a forward waits for the weights, the
extra tokens cost next to nothing.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastpower.chains.requests import Branch
from fastpower.errors import InvalidGuess
from fastpower.scheduler.lanes import Lane

#: The last of a lane's guesses is fed only if it is kept at least so often.
_LEAST = 0.1
_END = -1  # between two texts


class Guesser(Protocol):
    """What follows a text, of one prompt. It may be wrong, at the cost of work alone; it may not raise."""

    def guess(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """At most ``most`` tokens that may follow ``tokens`` (the prompt included)."""

    def saw(self, tokens: Sequence[int], begin: int) -> None:
        """A rollout ended with ``tokens``, new from ``begin`` on."""


class NgramGuesser:
    """What followed the latest occurrence of the longest suffix (up to ``longest`` tokens) in all that was seen."""

    def __init__(self, prompt: Sequence[int], longest: int = 4) -> None:
        self._longest = longest
        self._text: list[int] = []
        self._places: list[dict[int, int]] = [{} for _ in range(longest + 1)]  # suffix → where in the text it goes on
        self.saw(prompt, 0)

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        for n in range(min(self._longest, len(tokens)), 0, -1):
            place = self._places[n].get(hash(tuple(tokens[-n:])))
            if place is not None:
                found = self._text[place : place + most]
                return found[: found.index(_END)] if _END in found else found
        return []

    def saw(self, tokens: Sequence[int], begin: int) -> None:
        for n in range(1, self._longest + 1):
            places, shift = self._places[n], len(self._text) - begin
            for i in range(max(begin, n), len(tokens)):
                places[hash(tuple(tokens[i - n : i]))] = i + shift
        self._text += [*tokens[begin:], _END]


class Guesses:
    """The guessers of all prompts, and how many tokens each lane's guess may have.

    Args:
        most: Tokens guessed per lane and forward, at most; 0 = none.
        cheap: Tokens that a forward feeds at little cost.
    """

    def __init__(self, most: int, make: Callable[[Sequence[int]], Guesser], vocab_size: int, cheap: int) -> None:
        self.most, self._make, self._vocab_size, self._cheap = most, make, vocab_size, cheap
        self._of: weakref.WeakKeyDictionary[Branch, Guesser] = weakref.WeakKeyDictionary()

    def plan(self, lanes: Sequence[Lane]) -> list[tuple[Lane, InvalidGuess]]:
        """Give lanes their guesses; those whose guesser failed, with the error. Full batches get none."""
        failed: list[tuple[Lane, InvalidGuess]] = []
        for lane in lanes:
            lane.guess = []
        spare = self._cheap - len(lanes)
        for i, lane in enumerate(lanes):
            share = min(self.most, spare // (len(lanes) - i))
            if share < 1 or not lane.may_guess():
                continue
            [member] = lane.members
            useful = int(math.log(_LEAST) / math.log(lane.match_rate))
            share = min(share, max(useful, 1), member.most - len(member.drawn) - 1)
            if share < 1:
                continue
            try:
                lane.guess = self._checked(self._guesser(member.ticket.chain.prompt).guess(lane.tokens, share), share)
            except Exception as error:
                told = error if isinstance(error, InvalidGuess) else InvalidGuess(f"the guesser raised {error!r}")
                told.__cause__ = None if told is error else error
                failed.append((lane, told))
            spare -= len(lane.guess)
        return failed

    def saw(self, lane: Lane, token: int, begin: int, prompt: Branch) -> None:
        """A rollout of ``lane`` ended with ``token`` (−1: with the lane's last)."""
        if self.most:
            tokens = [*lane.tokens, token] if token >= 0 else lane.tokens
            self._guesser(prompt).saw(tokens, begin)

    def _guesser(self, prompt: Branch) -> Guesser:
        found = self._of.get(prompt)
        if found is None:
            found = self._of[prompt] = self._make(prompt.tokens)
        return found

    def _checked(self, guess: Sequence[int], most: int) -> list[int]:
        tokens = [int(token) for token in guess[:most]]
        for token in tokens:
            if not 0 <= token < self._vocab_size:
                raise InvalidGuess(
                    f"the guesser returned token {token}; tokens must lie in [0, {self._vocab_size}): mend it, or "
                    "guess=0 makes no guesses"
                )
        return tokens


def verifies(decoder: Any) -> bool:
    """Whether a decoder has ``verify`` that is as good as its ``forward``.

    It is not where somebody has put a ``forward`` of their own over the class that has it: that would not see the steps
    with guesses.
    """
    own = getattr(decoder, "__dict__", {})
    if "forward" in own:
        return "verify" in own
    for cls in type(decoder).__mro__:
        if "verify" in vars(cls):
            return True
        if "forward" in vars(cls):
            return False
    return False
