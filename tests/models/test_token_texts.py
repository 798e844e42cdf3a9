"""What each token adds to an answer's text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from fastpower.models.token_texts import token_texts


def test_token_texts_join_to_the_text_even_where_a_character_spans_tokens() -> None:
    pieces = {1: b" caf", 2: b"\xc3", 3: b"\xa9", 4: " ≤".encode()[:2], 5: " ≤".encode()[2:], 6: b""}

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    assert token_texts(decode, [1, 2, 3, 4, 5, 6]) == [" caf", "", "é", "", " ≤", ""]


@pytest.mark.parametrize("text", ["a €€ b", "😀😀", "x é 😀y€", "€", "abc", "日本語です"])
def test_byte_tokens_that_are_decoded_run_by_run_join_to_the_text(text: str) -> None:
    """Tokenizers with byte fallback decode a run of byte tokens together: a run cut open is all replacement signs."""
    vocabulary = {"<unk>": 0, "<s>": 1} | {f"<0x{b:02X}>": b + 2 for b in range(256)} | {"▁": 258, "a": 259, "b": 260}
    backend = Tokenizer(models.BPE({**vocabulary}, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ids = backend.encode(text.replace(" ", "▁"), add_special_tokens=False).ids
    assert "".join(token_texts(backend.decode, ids)) == backend.decode(ids) == text
    assert sum(map(bool, token_texts(backend.decode, ids))) == len(text)


def test_special_tokens_add_nothing_and_take_no_blank_away() -> None:
    pieces = {1: "▁a", 2: "", 3: "▁b", 4: "c"}

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert token_texts(decode, [1, 2, 2, 3, 2, 4, 3]) == ["a", "", "", " b", "", "c", " b"]
