"""What an answer's text answers, for votes and answer power: equal values are one answer, None is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastpower.evaluate.grading.equivalence import normalise
from fastpower.evaluate.grading.graders import boxed, grade_choice
from fastpower.evaluate.grading.numerals import numbers, plain, said, value
from fastpower.evaluate.grading.replies import runnable, solution

AnswerOf = Callable[[Any], str | None]


def mathematics(answer: Any) -> str | None:
    r"""The last box, else the number that the text gives as its answer; numbers by their value.

    Args:
        answer: A text, or whatever has one as ``text``: a ``Result``, a record.

    Examples:
        >>> mathematics(r"so \boxed{0.50}"), mathematics("The answer is 1/2."), mathematics("I do not know")
        ('1/2', '1/2', None)
        >>> mathematics(r"\boxed{x + 1}"), mathematics(r"\boxed{ x+1 }")
        ('x+1', 'x+1')
    """
    text = _text(answer)
    box = boxed(text)
    if box is None:
        number = said(text)
    else:
        found = numbers(box, box=True)
        number = found[0] if len(found) == 1 and plain(box, box=True).strip() == found[0] else None
    exact = None if number is None else value(number)
    if exact is not None:
        return str(exact)
    return normalise(box if box is not None else number or "") or None


def choice(letters: str = "ABCD") -> AnswerOf:
    r"""The letter that a text chooses: that in its last box, else the one after its last "answer is".

    Args:
        letters: Those to choose from.

    Raises:
        ValueError: No letters.

    Examples:
        >>> choice()(r"\boxed{\text{(B)}}"), choice()("The answer is C."), choice("AB")("Answer: C")
        ('B', 'C', None)
    """
    if not letters:
        raise ValueError("letters must name at least one choice, such as 'ABCD', got ''")

    def chosen(answer: Any) -> str | None:
        found = grade_choice(_text(answer), "", letters).answer
        return found if found is not None and len(found) == 1 and found in letters else None

    return chosen


def code_output(prompt: str, entry_point: str, calls: Sequence[str], *, timeout: float = 3.0) -> AnswerOf:
    """What a reply's program gives for some calls, run in the sandbox: programs that agree on them are one answer.

    Args:
        prompt: The function's head and docstring, with what stands before it.
        entry_point: The function's name.
        calls: Expressions to evaluate, such as ``"add(1, 2)"``; an exception is a value, too.
        timeout: Seconds for all of them; a program that does not get through has no answer.

    Raises:
        ValueError: No calls, which would make all programs one answer.
        SandboxUnavailable: At the first answer, if programs cannot be contained here.
    """
    if not calls:
        raise ValueError("calls must hold at least one expression: without any, all programs are one answer")
    attempts = "".join(
        f"try:\n    print(repr({call}))\nexcept Exception as error:\n    print(type(error).__name__)\n"
        for call in calls
    )

    def outputs(answer: Any) -> str | None:
        from fastpower.evaluate.sandbox.sandbox import run_python

        program = runnable(solution(prompt, entry_point, _text(answer)) + "\n" + attempts)
        outcome = run_python(program, timeout=timeout)
        return outcome.output if outcome.passed else None

    return outputs


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    return str(answer["text"] if isinstance(answer, Mapping) else answer.text)
