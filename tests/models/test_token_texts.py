"""What each token adds to an answer's text."""

from __future__ import annotations

from collections.abc import Sequence

from fastpower.models.token_texts import token_texts


def test_token_texts_join_to_the_text_even_where_a_character_spans_tokens() -> None:
    pieces = {1: b" caf", 2: b"\xc3", 3: b"\xa9", 4: " ≤".encode()[:2], 5: " ≤".encode()[2:], 6: b""}

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    assert token_texts(decode, [1, 2, 3, 4, 5, 6]) == [" caf", "", "é", "", " ≤", ""]
