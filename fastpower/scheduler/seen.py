"""The default source of guesses: what followed the last time that a prompt's texts had the same last tokens."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

_END = -1  # between two texts


class _Table:
    """All texts of one prompt, one behind the other, and where each suffix was last gone on from."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self.places: dict[int, int] = {}  # hash of a suffix → its next token's place in the text; a clash guesses wrong
        self.pending: deque[tuple[Sequence[int], int]] = deque(maxlen=256)


class SeenBefore:
    """A ``Guesser``: the prompt, current and rejected answers, other chains and particles are all looked up.

    Args:
        longest: Suffixes of so many tokens are looked up first, then shorter ones; of several places the latest counts.
        prompts: How many prompts are kept in mind, those asked for last.
        tokens: How many tokens of a prompt's texts are, after which its table begins anew. A token takes 400 bytes.
    """

    def __init__(self, longest: int = 4, *, prompts: int = 64, tokens: int = 1 << 13) -> None:
        for name, value in (("longest", longest), ("prompts", prompts), ("tokens", tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.longest, self.prompts, self.tokens = longest, prompts, tokens
        self._tables: OrderedDict[int | str, _Table] = OrderedDict()

    def seen(self, prompt: int | str, tokens: Sequence[int], begin: int) -> None:
        """Note that tokens[begin:] followed tokens[:begin]; entered when the prompt is next asked for."""
        self._of(prompt).pending.append((tokens, begin))

    def __call__(self, prompt: int | str, tokens: Sequence[int], most: int) -> Sequence[int]:
        """What followed the longest suffix that was seen, up to ``most`` tokens."""
        table = self._of(prompt)
        while table.pending:
            self._enter(table, *table.pending.popleft())
        for n in range(min(self.longest, len(tokens)), 0, -1):
            place = table.places.get(hash(tuple(tokens[-n:])))
            if place is not None:
                found = table.text[place : place + most]
                return found[: found.index(_END)] if _END in found else found
        return []

    def _of(self, prompt: int | str) -> _Table:
        if prompt not in self._tables:
            self._tables[prompt] = _Table()
            if len(self._tables) > self.prompts:
                self._tables.popitem(last=False)
        self._tables.move_to_end(prompt)
        return self._tables[prompt]

    def _enter(self, table: _Table, tokens: Sequence[int], begin: int) -> None:
        if len(table.text) > self.tokens:
            table.text, table.places = [], {}
        shift, places = len(table.text) - begin, table.places
        for i in range(max(begin, 1), len(tokens)):
            for n in range(1, min(self.longest, i) + 1):
                places[hash(tuple(tokens[i - n : i]))] = i + shift
        table.text += [*tokens[begin:], _END]
