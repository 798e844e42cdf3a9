"""Guesses: tokens fed behind a rollout's last one before they are drawn, so that one forward may draw several.

A token is a function of its row of logits, the rollout's key and its position. A row that is fed k guesses leaves k + 1
rows of logits; the token of each position is drawn as if it had been reached alone, and positions are kept while the
token drawn is the one guessed, and the first that differs. Nothing is approximated: a wrong guess costs what feeding it
cost, and no draw depends on it.

Guesses go to rows that a step has left over, those first that are most likely to be kept.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from fastpower.chains.chain import Chain
from fastpower.decoders.base import Decoder
from fastpower.errors import InvalidGuess
from fastpower.scheduler.lanes import Lane
from fastpower.scheduler.running import Live
from fastpower.scheduler.seen import SeenBefore

#: Up to so many tokens fed a step costs little more than with one, because it waits for the weights (docs/results.md);
#: they are cheaper than as many rows, each of which has keys and values of its own to read.
CHEAP_TOKENS = 12
#: A guess kept less often than that is not fed: a row more costs a few per cent of a step (docs/results.md).
_WORTH = 0.1
_PRIOR_MATCHES, _PRIOR_TRIALS = 1.2, 2.0  # what a chain that has not guessed yet is taken to have matched
_MEMORY = 0.9  # weight of what was matched before, step by step


class Guesser(Protocol):
    """Where guesses come from: a table, a small model, a function of yours. No answer depends on it, only the time.

    An object with a method ``seen(prompt, tokens, begin)``, too, is told of every rollout that ends, those that were
    rejected or given up included: ``tokens`` with the prompt, of which those from ``begin`` on are new.
    """

    def __call__(self, prompt: int | str, tokens: Sequence[int], most: int) -> Sequence[int]:
        """At most ``most`` tokens (more are ignored) that may follow ``tokens`` (prompt included); none if unknown.

        Args:
            prompt: Its name, ``Job.prompt_id``.
            tokens: The prompt and what was drawn so far.
            most: How many can be of use, at least 1.
        """


class Guesses:
    """Chooses what the lanes of one scheduler are fed beyond their own tokens.

    Args:
        decoder: What verifies them; without a ``verify`` of its own nothing is guessed.
        guess: "auto" looks up what was seen before, on decoders that are batch-invariant (elsewhere a row's bits depend
            on how it is fed); 0 guesses nothing; a number n guesses at most n tokens per row, on any decoder that can
            verify them; a ``Guesser`` is asked instead, likewise.
        max_rows: Of the scheduler's steps.

    Raises:
        ValueError: ``guess`` is none of these.
    """

    def __init__(self, decoder: Decoder, guess: str | int | Guesser, max_rows: int) -> None:
        self._most = CHEAP_TOKENS
        self._guesser: Guesser = SeenBefore()
        if isinstance(guess, str):
            if guess != "auto":
                raise ValueError(f'guess must be "auto", 0, a number of tokens or a function, got {guess!r}')
        elif callable(guess):
            self._guesser = guess
        elif isinstance(guess, bool) or not isinstance(guess, int) or guess < 0:
            raise ValueError(f'guess must be "auto", 0, a number of tokens ≥ 1 or a function, got {guess!r}')
        else:
            self._most = guess
        self._asked = verifies(decoder) and guess != 0  # the decoder can, and nobody has said no
        self._anyway = guess != "auto"
        self._seen = getattr(self._guesser, "seen", None)
        self._decoder = decoder
        self._rows = min(CHEAP_TOKENS, max_rows)
        self._known: WeakKeyDictionary[Chain, list[float]] = WeakKeyDictionary()  # matches and trials, fading

    @property
    def on(self) -> bool:
        """Whether anything is guessed, now."""
        return self._asked and (self._anyway or self._decoder.batch_invariant)

    def rate(self, chain: Chain) -> float:
        """How often a guess whose position was reached has matched, lately."""
        matches, trials = self._known.get(chain, (0.0, 0.0))
        return (matches + _PRIOR_MATCHES) / (trials + _PRIOR_TRIALS)

    def reserved(self, live: Iterable[Live]) -> int:
        """Rows that serve chains better with guesses than with a move decoded ahead.

        Such a move is used only if the one before is rejected.
        """
        return sum(self._reserved(one.chain) for one in live) if self.on else 0

    def _reserved(self, chain: Chain) -> int:
        if chain not in self._known:
            return 0
        rate, value, rows = self.rate(chain), 1.0, 0
        least = max(_WORTH, 1.0 - _acceptance(chain))
        while rows < self._most and (value := value * rate) >= least:
            rows += 1
        return rows

    def plan(self, lanes: Sequence[Lane]) -> list[tuple[Lane, InvalidGuess]]:
        """Give the lanes of a step their guesses; those whose guesser failed, with the error. Full batches get none."""
        spare = self._rows - len(lanes)
        if spare <= 0 or not self.on:
            return []
        failed: list[tuple[Lane, InvalidGuess]] = []
        offers: list[tuple[float, int]] = []
        before = Counter[Chain]()
        for index, lane in enumerate(lanes):
            if not lane.may_guess():
                continue
            chain = lane.members[0].ticket.chain
            # The second lane of a chain decodes ahead, and is used if the move of the first is rejected.
            value = (1.0 - _acceptance(chain)) ** before[chain]
            before[chain] += 1
            rate, values = self.rate(chain), list[float]()
            for _ in range(min(spare, self._most, lane.room())):
                value *= rate
                if values and value < _WORTH:
                    break
                values.append(value)
            if not values:
                continue
            try:
                lane.guess = self._ask(lane, chain, len(values))
            except InvalidGuess as error:
                failed.append((lane, error))
            offers += [(-value, index) for value, _ in zip(values, lane.guess, strict=False)]
        shares = Counter(index for _, index in sorted(offers)[:spare])
        for index, lane in enumerate(lanes):
            lane.guess = lane.guess[: shares[index]]
        return failed

    def matched(self, lane: Lane, guessed: int, kept: int, stopped: bool) -> None:
        """Book a lane's guesses.

        All its members drew the first ``kept``; ``stopped`` says that the next was not drawn.
        """
        share = 1.0 / len(lane.members)
        for member in lane.members:
            member.counts.guesses_kept += share * kept
            member.counts.guesses_dropped += share * (guessed - kept)
        known = self._known.setdefault(lane.members[0].ticket.chain, [0.0, 0.0])
        known[0] = _MEMORY * known[0] + kept
        known[1] = _MEMORY * known[1] + kept + stopped

    def ended(self, lane: Lane, chain: Chain, token: int) -> None:
        """A rollout on this lane ended with this token (−1: its last is the lane's own)."""
        if self._seen is not None and self.on:
            tokens = tuple(lane.tokens) if token < 0 else (*lane.tokens, token)
            self._seen(chain.prompt_id, tokens, lane.length)

    def _ask(self, lane: Lane, chain: Chain, most: int) -> list[int]:
        """Up to ``most`` guesses: no stop token, because nothing follows it, and not the excluded token first."""
        prompt = chain.prompt_id
        if self._seen is not None and not lane.known:  # what the rollout departs from: the prompt, the current answer
            lane.known = True
            parent = lane.parent
            begin = 0 if parent.root is None else lane.length
            if begin < len(parent.tokens):
                self._seen(prompt, parent.tokens, begin)
        try:
            raw = self._guesser(prompt, lane.tokens, most)
            tokens = [operator.index(token) for token in list(raw)[:most]]
        except Exception as failure:
            raise _failed(prompt, f"raised {type(failure).__name__}: {failure}") from failure
        vocab_size, eos_ids = self._decoder.vocab_size, self._decoder.eos_ids
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise _failed(prompt, f"returned {token}, which is no token: they lie in [0, {vocab_size})")
        excluded = {member.request.exclude for member in lane.members if not member.drawn}
        for i, token in enumerate(tokens):
            if token in eos_ids or (i == 0 and token in excluded):
                return tokens[:i]
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


def _acceptance(chain: Chain) -> float:
    """Of the moves so far; 0 where nothing is known, and where there are no moves."""
    counts = chain.counts
    return counts.accepted / counts.moves if counts.moves else 0.0


def _failed(prompt: int | str, what: str) -> InvalidGuess:
    return InvalidGuess(f"the guesser {what} (prompt {prompt!r}); mend it, or guess=0 samples without guesses")
