r"""Graders: the answer found in a text, and whether it is right.

Mathematics follows the papers' rule: the *last* ``\boxed{…}`` or ``\fbox{…}``, compared by math-verify. Choices are
the letter in the box. Numbers are compared exactly as fractions.
"""

from __future__ import annotations

import importlib.util
import re
from typing import NamedTuple

from fastpower.errors import FastpowerError
from fastpower.evaluate.grading.equivalence import equivalent
from fastpower.evaluate.grading.numerals import numbers, plain, said, value

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\(?:boxed|fbox)\s+([^\s${}\\]+)")

_FORMULA = re.compile(r"[\^*/+]|\\(?:sqrt|cdot|times|pi)")  # what makes more than a number of it


class Grade(NamedTuple):
    """The verdict on one answer."""

    correct: bool
    answer: str | None  #: what was found in the text; None if nothing was, or where answers are programs
    note: str = ""  #: why it is wrong, where that is not obvious: "no boxed answer", "timeout", …


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed`` or ``\fbox`` whose braces close; None without one.

    Examples:
        >>> boxed("first \\boxed{1}, then \\boxed{\\frac{1}{2}}")
        '\\frac{1}{2}'
    """
    found = None
    for match in _BOX.finditer(text):
        content = match.group(1) if match.group(1) is not None else _braced(text, match.end())
        if content is not None:
            found = content.strip()
    return found


def _braced(text: str, start: int) -> str | None:
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":  # an escaped brace is not a brace
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
        i += 1
    return None


def last_number(text: str) -> str | None:
    """The last number of a text, thousands separators removed: ``-1,234.50`` gives ``-1234.50``, ``3/4`` stays."""
    found = numbers(text)
    return found[-1] if found else None


def grade_boxed(text: str, reference: str) -> Grade:
    """The last box against ``reference``, symbolically."""
    answer = boxed(text)
    if answer is None:
        return Grade(False, None, "no boxed answer")
    correct, note = equivalent(answer, reference)
    return Grade(correct, answer, note)


def grade_number(text: str, reference: str) -> Grade:
    """The number in the last box, else the one that the text gives as its answer (``numerals.said``); exact.

    A box that holds more than one number with its unit is compared by math-verify, where that is installed.
    """
    box = boxed(text)
    expected = value(next(iter(numbers(reference, box=True)), reference))
    if box is None:
        answer = said(text)
        return Grade(answer is not None and value(answer) == expected, answer, "" if answer else "no number found")
    bare = box.rpartition("=")[2] or box
    found = numbers(bare, box=True)
    if not found:
        return Grade(False, None, "no number found")
    rest = plain(bare, box=True).replace(found[0], "").strip(" /")  # a unit's "per" says nothing of the number
    if (len(found) == 1 and not _FORMULA.search(rest)) or importlib.util.find_spec("math_verify") is None:
        return Grade(value(found[0]) == expected, found[0])
    correct, note = equivalent(plain(bare, box=True).strip(), reference)
    return Grade(correct, box, note)


def grade_choice(text: str, reference: str, letters: str) -> Grade:
    """The letter in the last box, else the one after the last ``answer is``/``answer:``."""
    choice = re.compile(rf"\(?([{letters}])\)?(?:[).:,\s]|$)")
    box = boxed(text)
    if box is not None:
        bare = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\s*\{([^}]*)\}", r"\1", box).strip()
        found = choice.match(bare)
        if found is None:
            return Grade(False, box, f"the box holds none of the letters {letters}")
        return Grade(found[1] == reference, found[1])
    said = re.findall(rf"[Aa]nswer(?:\s+is)?\s*:?\s*\(?([{letters}])\b", text)
    if not said:
        return Grade(False, None, "no boxed letter")
    return Grade(said[-1] == reference, said[-1])


def require_math_verify() -> None:
    """Refuse to go on where math-verify is missing: before any compute rather than at the first answer.

    Raises:
        FastpowerError: It is missing; the message names what to install.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise FastpowerError("grading mathematics needs math-verify: `pip install '.[eval]'` in fastpower's checkout")
