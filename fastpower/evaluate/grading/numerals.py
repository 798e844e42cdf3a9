"""Numbers as people and models write them: which number a text gives as its answer, and what its value is.

The whole number counts, not its last digits: thousands separators, LaTeX, units, percent signs, currencies, fractions,
mixed numbers and powers of ten are read; a unit's exponent, an index or a base is no number.
"""

from __future__ import annotations

import re
from fractions import Fraction

#: spaces between groups of digits: LaTeX's, no-break, thin and narrow
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|\\!,|\\[,!;: ]|[\u00a0\u2009\u202f'’_]|~)(?=\d{3}(?!\d))")
_EMPHASIS = re.compile(r"(?<!\w)__(?=\S)([^_\n]+)__(?!\w)")
_BOX_GROUPS = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")
#: words in a formula, with the power or index that they carry: units
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|hbox)\s*\{([^{}]*)\}\s*(?:[\^_](?:\{[^{}]*\}|\S))?"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}\s*\{([^{}]+)\}|(\d)\s*(\d))")
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|×|·|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?\s*([-+−]?\d+)\s*\}?")
_INDEX = re.compile(r"_\s*(?:\{[^{}]*\}|\w)")
_PLAIN = r"(?:\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?<![\w.^_\\])[-+−–]?\s?(?:\d+\s+\d+/\d+|(?:{_PLAIN})(?:[eE][-+]?\d+)?(?:\s*/\s*(?:{_PLAIN}))?)(?![\w]*[({{])"
)
_SAID = re.compile(r"(?:####|\banswer\b[^.\n]{0,40}?(?:\bis\b|[:=]))", re.IGNORECASE)


def plain(text: str, *, box: bool = False) -> str:
    """The text without LaTeX around its numbers: groups of digits together, units and indices gone, fractions as a/b.

    Args:
        text: What a model wrote.
        box: It is the content of a box, where blanks between groups of three digits are separators, too.
    """
    text = _GROUPS.sub("", text)
    if box:
        text = _BOX_GROUPS.sub("", text)
    text = _WORDS.sub(lambda m: f" {m[1]} " if re.match(r"\s*[-+−]?\\?\$?\d", m[1]) else " ", text)
    text = _EMPHASIS.sub(r"\1", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
    text = _POWER_OF_TEN.sub(lambda m: f"e{m[1].replace('−', '-')}", text)
    text = _INDEX.sub(" ", text) if box else text
    text = re.sub(r"\\(?:left|right|displaystyle|quad|,|;|!|:)(?![a-zA-Z])", " ", text)
    text = re.sub(r"\\[%$]|[$€£¥%]", " ", text)
    return re.sub(r"\\ |°|\\degree|\^\s*\{?\\circ\}?", " ", text)


def numbers(text: str, *, box: bool = False) -> list[str]:
    """All numbers of a text in order, ready for ``value``."""
    return [_tidy(match[0]) for match in _NUMBER.finditer(plain(text, box=box))]


def _tidy(number: str) -> str:
    number = number.replace(",", "").replace("−", "-").replace("–", "-").strip().lstrip("+")
    number = re.sub(r"^-\s+", "-", number)
    return re.sub(r"\s*/\s*", "/", number)


def said(text: str) -> str | None:
    """The number that a text gives as its answer: the first after its last "####" or "answer is", else its last."""
    marks = [match.end() for match in _SAID.finditer(text)]
    for mark in reversed(marks):
        line = text[mark:].strip().partition("\n")[0]
        found = numbers(line.rpartition("=")[2]) or numbers(line)
        if found:
            return found[0]
    found = numbers(text)
    return found[-1] if found else None


def value(number: str) -> Fraction | None:
    """The exact value of ``1234.50``, ``3/4``, ``2 1/2``, ``1e3``; None for anything else."""
    whole, _, part = number.strip().partition(" ")
    try:
        if part:
            sign = -1 if whole.startswith("-") else 1
            return Fraction(whole) + sign * Fraction(part)
        top, slash, bottom = whole.partition("/")
        return Fraction(top) / Fraction(bottom) if slash else Fraction(top)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
