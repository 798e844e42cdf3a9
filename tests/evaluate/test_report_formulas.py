"""Formulas of the report: LaTeX becomes MathML, anything else stays text."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from fastpower.evaluate.report.formulas import LONGEST, mathml, typeset, typeset_answer

pytest.importorskip("latex2mathml", reason="formulas are typeset with pip install '.[eval]'")


def _tags(markup: str) -> set[str]:
    return {e.tag for e in ElementTree.fromstring(f"<p>{markup}</p>").iter()} - {"p"}


@pytest.mark.parametrize("text", ["$x^2$", "$$x^2$$", r"\(x^2\)", r"\[x^2\]", "a $x^2$ b", "costs $5: $x^2$"])
def test_every_kind_of_mark_is_set(text: str) -> None:
    made = typeset(text)
    assert {"math", "msup", "mi", "mn"} <= _tags(made)
    assert ("block" in made) == (text[:2] in ("$$", r"\["))


@pytest.mark.parametrize(
    "text", ["$5 and $7", r"\$x\$", "a < b & c", "$ x $", "100 $", "", "$", "$$", r"\foo", "a_b = {}"]
)
def test_what_is_no_formula_stays_as_it_is(text: str) -> None:
    made = typeset(text)
    assert _tags(made) == set() and ElementTree.fromstring(f"<p>{made}</p>").text == (text or None)


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{",
        r"\left(",
        "{" * 500,
        r"\nocommand{x}",
        "x_",
        "x" * (LONGEST + 1),
        r"\href{javascript:alert(1)}{y}",
        r"\text{<script>alert(1)</script>}",
        r"\text{<img src=x>}",
        r"\style{color:red}{x}</math>",
        "a & b < c",
    ],
)
def test_what_cannot_be_converted_whole_is_left_as_written(latex: str) -> None:
    text = f"see ${latex}$ there"
    made = typeset(text)
    root = ElementTree.fromstring(f"<p>{made}</p>")
    if mathml(latex) is None:
        assert root.text == text
    assert not {e.tag for e in root.iter()} & {"script", "img", "a"}
    assert not [e for e in root.iter() if {"href", "src", "style"} & set(e.attrib)]


def test_without_the_converter_formulas_are_shown_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert typeset("see $x<2$") == "see $x&lt;2$" and typeset_answer(r"\frac{1}{2}") == r"\frac{1}{2}"


@pytest.mark.parametrize("mark", [r"\[", r"\(", "$$", "$x ", "$"])
def test_thousands_of_marks_that_are_never_closed_stay_text(mark: str) -> None:
    text = mark * 20_000
    assert typeset(text) == text


@pytest.mark.parametrize(
    "text, is_set", [(r"\frac{1}{2}", True), ("$7$", True), ("42", False), (r'print("\\n")', False)]
)
def test_a_bare_answer_in_latex_is_a_formula(text: str, is_set: bool) -> None:
    assert ("<math" in typeset_answer(text)) == is_set
