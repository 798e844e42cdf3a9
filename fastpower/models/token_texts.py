"""What each token of an answer adds to its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: most tokens that spell one character: one per byte of UTF-8
_LONGEST = 4


def token_texts(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text.

    A character that several tokens spell stands at the last of them; a special token adds nothing.

    Tokens are decoded behind the last that added something, all of what spelt it: alone, some tokenizers drop a token's
    leading blank, and those with byte tokens decode a run of them together, all of it or none.
    """
    texts: list[str] = []
    anchor = start = 0  # decoded from here; not yet told from here
    before = ""
    for i in range(len(tokens)):
        window = decode(tokens[anchor : i + 1])
        if window.endswith("\ufffd") and i + 1 < len(tokens) and i + 1 - start < _LONGEST:
            texts.append("")
            continue
        texts.append(window[len(before) :])
        anchor = start if texts[-1] else anchor
        start = i + 1
        before = decode(tokens[anchor:start])
    return texts
