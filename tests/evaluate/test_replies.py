"""Which program a reply stands for: however it is written, a right solution passes and a wrong one does not."""

from __future__ import annotations

import pytest

from fastpower.evaluate.grading.replies import fences, runnable, solution

PROMPT = '''from typing import List


def helper(x):
    return x


def add_all(xs: List[int]) -> int:
    """ Sum of a list.
    >>> add_all([1, 2])
    3
    """
'''
TEST = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
GOOD = "def add_all(xs):\n    return sum(xs)\n"
WRONG = "def add_all(xs):\n    return 0\n"


def passes(reply: str) -> bool:
    """As the task grades it, but in this process: these programs are ours."""
    program = runnable(solution(PROMPT, "add_all", reply) + f"\n\n{TEST}\n\ncheck(add_all)\n")
    space = {"__name__": "__main__"}
    try:
        exec(compile(program, "program", "exec"), space)
    except Exception:
        return False
    return True


def fenced(code: str, open: str = "```python", close: str = "```") -> str:
    return f"{open}\n{code}{close}\n"


def indented(text: str, by: str) -> str:
    return "".join(by + line for line in text.splitlines(keepends=True))


REPLIES = {
    "python": fenced(GOOD),
    "capital": fenced(GOOD, "```Python"),
    "py3": fenced(GOOD, "```py3"),
    "no info": fenced(GOOD, "```"),
    "attributes": fenced(GOOD, '```python title="a.py" hl_lines=2'),
    "braces": fenced(GOOD, "```{.python .numberLines}"),
    "tildes": fenced(GOOD, "~~~python", "~~~"),
    "four backticks": fenced(GOOD, "````python", "````"),
    "blank before info": fenced(GOOD, "```   python"),
    "never closed": "```python\n" + GOOD,
    "CRLF": fenced(GOOD).replace("\n", "\r\n"),
    "CR": fenced(GOOD).replace("\n", "\r"),
    "in a list": "1. Code:\n\n" + indented(fenced(GOOD), "   "),
    "in a bullet": "- Code:\n" + indented(fenced(GOOD), "  "),
    "indented by three": indented(fenced(GOOD), "   "),
    "in a quotation": indented(fenced(GOOD), "> "),
    "code indented in its fence": fenced(indented(GOOD, "    ")),
    "prose around": "Sure! Here it is:\n\n" + fenced(GOOD) + "\nThis sums the list.\n",
    "wrong first": "A first try:\n" + fenced(WRONG) + "That fails, so:\n" + fenced(GOOD),
    "usage after": fenced(GOOD) + "Use it:\n" + fenced("print(add_all([1, 2]))\n"),
    "shell after": fenced(GOOD) + fenced("pip install nothing\n", "```bash"),
    "no fence, sentence before": "Here is the function:\n\n" + GOOD,
    "no fence, sentences around": "Here is the function:\n\n" + GOOD + "\nIt uses the built-in sum, which is fast.\n",
    "no fence, imports": "Here:\nimport functools\n\ndef add_all(xs):\n    return functools.reduce(int.__add__, xs, 0)",
    "future": fenced("from __future__ import annotations\n\n" + GOOD),
    "main guard": fenced(GOOD + '\nif __name__ == "__main__":\n    n = int(input())\n    print(add_all(range(n)))\n'),
    "whole prompt again": fenced(PROMPT + "    return sum(xs)\n"),
    "uses the prompt's helper": fenced("def add_all(xs):\n    return sum(helper(x) for x in xs)\n"),
    "method": fenced("class Solution:\n    def add_all(self, xs):\n        return sum(xs)\n"),
    "assigned": fenced("add_all = lambda xs: sum(xs)\n"),
    "async helper": fenced("async def other():\n    pass\n\n\n" + GOOD),
    "decorated": fenced("import functools\n\n@functools.wraps(sum)\n" + GOOD),
    "dataclass and future": fenced(
        "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: A\n" + GOOD
    ),
    "body": "    return sum(xs)\n",
    "body fenced": fenced("    return sum(xs)\n"),
    "body without indentation": "return sum(xs)\n",
    "body and more": "    return sum(xs)\n\n\ndef unrelated():\n    return 1\n",
    "body, then prose in a fence": "    return sum(xs)\n```\nThat is all.",
    "tabs": fenced("def add_all(xs):\n\treturn sum(xs)\n"),
    "byte order mark": "\ufeff" + fenced(GOOD),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_right_solution_passes_however_it_is_written(name):
    assert passes(REPLIES[name])


@pytest.mark.parametrize("name", REPLIES)
def test_a_wrong_solution_does_not(name):
    reply = (
        REPLIES[name].replace("sum(xs)", "max(xs)").replace("sum(helper", "max(helper").replace("__add__", "__sub__")
    )
    assert not passes(reply)


NOTHING = ["", "I cannot.", "```python\n```", "def add_all(", "```python\ndef other(xs):\n    return sum(xs)\n```"]


@pytest.mark.parametrize("reply", NOTHING)
def test_a_reply_without_a_solution_fails_and_nothing_breaks(reply):
    assert not passes(reply)


def test_fences_are_those_of_commonmark():
    assert fences("```a\n1\n```\n~~~\n2\n~~~\n    ```\n    3\n    ```\n") == ["1\n", "2\n"]
    assert fences("````\n```\ninner\n```\n````\n") == ["```\ninner\n```\n"]


def test_a_long_reply_without_code_takes_no_time():
    assert not passes("def add_all is a function. " + "word " * 50_000)
    assert not passes("\n".join(f"x{i} = (" for i in range(3000)) + "\ndef add_all(xs): (")
