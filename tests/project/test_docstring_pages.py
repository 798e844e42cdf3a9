"""Docstrings as the API reference shows them."""

import pytest

pytest.importorskip("griffe", reason="the documentation's tools are not installed: pip install '.[docs]'")

from docs.hooks.docstrings import comments, fenced, listed, settings


def test_a_doctest_becomes_a_code_block_without_directives():
    text = "Says so.\n\n>>> f(1)  # doctest: +ELLIPSIS\n[1]\n\nMore."
    assert fenced(text) == "Says so.\n\n```pycon\n>>> f(1)\n[1]\n```\n\nMore."


def test_two_columns_become_a_list_and_prose_stays():
    text = "Answers.\n\nmodel    a path\n         or a name\n*rest, b   others\n\nReturns  nothing\nat all."
    assert (
        listed(text) == "Answers.\n\n- `model`: a path\n  or a name\n- `*rest, b`: others\n\nReturns  nothing\nat all."
    )


def test_settings_named_in_a_paragraph_become_a_list_and_other_words_do_not():
    text = "Exact. tries: K per move\n(see: the paper). early, late (moves; 1 = none): saves work; window: w tokens."
    assert settings(text, ["tries", "early", "late", "window"]) == (
        "Exact.\n\n- `tries`: K per move (see: the paper).\n"
        "- `early, late` (moves; 1 = none): saves work\n- `window`: w tokens."
    )


def test_comments_stand_behind_an_attribute_or_alone_on_the_line_before_it():
    source = ["a: int  #: first", "b: int", "#: (N,) third", "c: Tensor  # type: ignore"]
    assert comments(source, {"a": (1, 1), "b": (2, 2), "c": (4, 4)}) == {"a": "first", "c": "(N,) third"}
