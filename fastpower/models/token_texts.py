"""What each token of an answer adds to its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def token_texts(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text. A character that several tokens spell stands at the last of them; a special
    token adds nothing."""
    texts, start = [], 0
    before = ""
    for i in range(len(tokens)):
        # the token before is decoded, too: alone, some tokenizers drop a token's leading blank
        window = decode(tokens[max(start - 1, 0) : i + 1])
        if window.endswith("\ufffd") and i + 1 < len(tokens) and i - start < 4:
            texts.append("")
            continue
        texts.append(window[len(before) :])
        start = i + 1
        before = decode(tokens[i : i + 1])
    return texts
