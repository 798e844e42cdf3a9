"""More ways in which models write numbers and programs, each found by trying."""

from __future__ import annotations

import pytest

from fastpower.evaluate.grading.graders import grade_number
from fastpower.evaluate.grading.replies import solution

NUMBERS = {
    r"The answer is \text{18 eggs}": "18",
    r"The answer is \boxed{\text{18}}": "18",
    r"The answer is \boxed{18 \text{ cm}^2}": "18",
    "The answer is __18__": "18",
    "The answer is 12,34,567": "1234567",
    "The answer is 1'234": "1234",
    "The answer is 1_234": "1234",
    "The answer is 1\u202f234": "1234",
    "The answer is １３": "13",
    "x_123 = 7, so the answer is 7": "7",
    '{"answer": 18}': "18",
    "<answer>18</answer>": "18",
    "The answer is 45, not 54.": "45",
    "I think 5... wait, no. 6.": "6",
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_as_it_is_written(text: str) -> None:
    assert grade_number(text, NUMBERS[text]).correct


HEAD = 'def add(a, b):\n    """Add."""\n'
CODE = HEAD + "    return a + b\n"
REPLIES = {
    "tabs behind the prompt's spaces": "\treturn a + b\n",
    "thoughts with code": f"<think>maybe ```python\ndef add(a, b): return 0\n```</think>\n```python\n{CODE}```",
    "thoughts that never closed a fence": f"<think>```python\ndef add(</think>\n```python\n{CODE}```",
    "a byte order mark": "\ufeff" + CODE,
    "a space of no width": f"\u200b```python\n{CODE}```",
    "no-break spaces": f"```python\n{CODE}```".replace("    ", "\u00a0" * 4),
    "a document in a fence": f"````md\nSome prose\n```python\n{CODE}```\n````",
    "indented code behind prose": "Answer:\n\n    def add(a, b):\n        return a + b\n",
    "a notebook's magic": f"```python\n%timeit add(1, 2)\n{CODE}```",
    "a notebook's shell": f"```python\n!pip install numpy\n{CODE}```",
}


@pytest.mark.parametrize("kind", REPLIES)
def test_the_program_of_a_reply_is_found(kind: str) -> None:
    names: dict[str, object] = {"__name__": "solution"}
    exec(compile(solution(HEAD, "add", REPLIES[kind]), "program", "exec"), names)
    assert names["add"](1, 2) == 3  # type: ignore[operator]
