"""Stop strings: an answer ends with the first token with which its text contains one of them.

That is a function of the prefix, so p^alpha over answers that end so is as well defined as over those that end at an
end-of-sequence token. Text and tokens have different borders; a stop string may be spelt by parts of several tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]


class Stopping:
    """Whether an answer has just ended, by its text.

    Decoding an answer anew for every token of it would cost the square of its length. Only a token that could have
    written the last character of a stop string can complete one: those are looked up, and only behind them the text
    is decoded.

    Args:
        strings: Any of which ends an answer.
        decode: Token ids → text, special tokens left out.
        special: Tokens that end an answer by themselves; see ``special_tokens``.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, special: Collection[int] = ()) -> None:
        self.strings = tuple(strings)
        self._special = frozenset(special)
        self._decode = decode
        self._last = {string[-1] for string in self.strings}
        self._blank = " " in self._last  # some tokenizers decode a token alone without its leading blank
        self._may_complete: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens completes a stop string. The answer had not ended before it."""
        token = tokens[-1]
        if token in self._special:
            return True
        may = self._may_complete.get(token)
        if may is None:
            may = self._may_complete[token] = self._can_end(self._decode([token]))
        if not may:
            return False
        text = self._decode(tokens)
        return any(string in text for string in self.strings)

    def _can_end(self, text: str) -> bool:
        # U+FFFD: bytes of a character that other tokens complete
        return self._blank or "\ufffd" in text or any(last in text for last in self._last)


def special_tokens(tokenizer: Any, strings: Sequence[str]) -> list[int]:
    """Ids of the special tokens among stop strings, such as ``"<|im_end|>"``: they are never part of a text.

    Args:
        tokenizer: Of transformers; None, and one that does not know of special tokens, has none.
        strings: Stop strings.
    """
    special = getattr(tokenizer, "all_special_tokens", ())
    return [int(tokenizer.convert_tokens_to_ids(string)) for string in strings if string in special]


def before_stop(text: str, strings: Sequence[str]) -> tuple[str, str | None]:
    """An answer's text up to the first stop string in it, and which that is; the longest of those that begin there.

    Examples:
        >>> before_stop("4; Q: 5", ["Q:", "; "])
        ('4', '; ')
        >>> before_stop("4", ["Q:"])
        ('4', None)
    """
    found = [(text.find(string), -len(string), string) for string in strings if string in text]
    if not found:
        return text, None
    place, _, string = min(found)
    return text[:place], string
