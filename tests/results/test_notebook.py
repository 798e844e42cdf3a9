"""Answers as notebooks show them: whole, harmless, and honest about what they are."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from fastpower.results import Results, notebook
from tests.results.test_diagnostics import made

VOID = {"br", "hr"}
TEXTS = ["x <", "b> & ", "\x1b[2J", '"é"\n', "\t≤"]


class Page(HTMLParser):
    """Elements with their attributes, and the text; fails on elements that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def answer(**given):
    fields = {
        "id": "p/0/mh", "text": "".join(TEXTS), "token_text": TEXTS, "token_ids": [5, 6, 7, 8, 9],
        "entropy": [0.0, 1.0, 2.0, 3.0, 40.0], "token_logp": [-0.5, -1.0, -2.0, -3.0, -4.0], "logp": -10.5,
        "moves": 4, "accepted": 3, "acceptance": 0.75, "decoded_tokens": 20,
    }  # fmt: skip
    return made(**{**fields, **given})


def test_an_answer_is_shown_token_by_token_with_its_facts():
    page = Page(answer()._repr_html_())
    assert 'x <b> & \\x1b[2J"é"\n\t≤' in page.text
    spans = page.tags("span")
    assert spans[2]["title"] == "token 2: entropy 2.00, log p -2.00"
    opacity = [float(span["style"].rpartition(",")[2].rstrip(" )")) for span in spans]
    assert opacity == sorted(opacity) and opacity[0] == 0 and opacity[-1] == 0.8
    assert "log p -10.50" in page.text and "3 of 4 moves accepted" in page.text and "5 tokens, 20 decoded" in page.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ended": False}, "cut off at the horizon"),
        ({"complete": False}, "interrupted"),
        ({"exact": False}, "approximate method"),
    ],
)
def test_what_must_not_be_overlooked_is_said_alone_and_in_a_table(given, said):
    assert said in Page(answer(**given)._repr_html_()).text
    assert said in Page(Results([answer(), answer(**given)])._repr_html_()).text
    assert said not in Page(Results([answer()])._repr_html_()).text


def test_a_table_has_a_row_for_every_answer_up_to_a_bound():
    page = Page(Results([answer(prompt_id=f"<{i}>") for i in range(notebook.ROWS + 3)])._repr_html_())
    assert len(page.tags("tr")) == 1 + notebook.ROWS and "3 more answers" in page.text and "<0>" in page.text
    assert Page(Results([])._repr_html_()).tags("tr")


def test_a_prompt_that_was_text_is_shown_in_its_own_words():
    page = Page(Results([answer(prompt="What is\n<this>?"), answer(prompt=[{"role": "user"}])])._repr_html_())
    assert [page.text.count(words) for words in ("What is <this>?", "user")] == [1, 0]


def test_without_a_tokenizer_tokens_are_their_ids():
    page = Page(answer(text="", token_text=[""] * 5)._repr_html_())
    assert "[5][6][7][8][9]" in page.text


def test_a_long_answer_says_how_much_is_not_shown():
    n = notebook.TOKENS + 7
    long = answer(token_ids=[1] * n, token_text=["a "] * n, text="a " * n, entropy=[0.1] * n, token_logp=[-0.1] * n)
    page = Page(long._repr_html_())
    assert len(page.tags("span")) == notebook.TOKENS and "7 more tokens" in page.text
