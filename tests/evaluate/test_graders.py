"""Which part of a text is its answer, and when it equals the reference."""

from __future__ import annotations

import threading

import pytest

from fastpower.evaluate.grading import equivalence
from fastpower.evaluate.grading.graders import boxed, grade_boxed, grade_choice, grade_number, last_number


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed 9 is it", "9"),
        (r"\boxed{3} but \boxed{4 is not closed", "3"),
        ("no box", None),
        ("", None),
    ],
)
def test_boxed_is_the_last_box_that_closes(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@pytest.mark.parametrize(
    "text, number",
    [
        ("3 + 4 = 7.", "7"),
        ("it is -1,234.50 dollars", "-1234.50"),
        ("a fraction 3/4", "3/4"),
        ("version v2", None),
        ("5−9=−4", "-4"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize("answer", ["0.5", r"\frac12", r"\dfrac{1}{2}", r"\frac{2}{4}", "1/2", r"\left.\frac12\right."])
def test_equal_values_written_differently_are_correct(answer: str) -> None:
    assert grade_boxed(f"so \\boxed{{{answer}}}", r"\frac{1}{2}").correct


@pytest.mark.parametrize(
    "answer, reference, correct",
    [
        ("(x+5)(x-5)", "(x-5)(x+5)", True),
        ("24i-7", "-7+24i", True),
        (r"3\sqrt{2}+5\sqrt{2}", r"8\sqrt{2}", True),
        ("[1,3]", "(1,3)", False),
        ("(1,3)", "(3,1)", False),
        ("-7-24i", "-7+24i", False),
        ("", "3", False),
        (r"\frac{", "3", False),
        ("banana", "3", False),
    ],
)
def test_symbolic_equality_and_its_negative_controls(answer: str, reference: str, correct: bool) -> None:
    assert grade_boxed(f"\\boxed{{{answer}}}", reference).correct is correct


def test_an_answer_without_a_box_is_wrong_and_says_so() -> None:
    grade = grade_boxed("the answer is 3", "3")
    assert (grade.correct, grade.answer, grade.note) == (False, None, "no boxed answer")


def test_an_answer_that_hangs_the_comparison_is_wrong_and_the_next_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "TIMEOUT", 3.0)
    assert not grade_boxed(r"\boxed{9^{9^{9^{9^{9}}}}}", "3").correct
    assert equivalence.equivalent("2+1", "3") == (True, "")


def test_a_killed_worker_is_replaced() -> None:
    assert equivalence.equivalent("2+1", "3")[0]
    process = equivalence._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert equivalence.equivalent("2+2", "4") == (True, "")


def test_grading_works_from_any_thread() -> None:
    verdicts: list[bool] = []

    def grade(i: int) -> None:
        verdicts.append(equivalence.equivalent(f"{i}+1", "3")[0])

    work = [threading.Thread(target=grade, args=(i,)) for i in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted(verdicts) == [False, False, False, True]


@pytest.mark.parametrize(
    "text, reference, correct",
    [
        ("4 - 7 = -3", "-3", True),
        ("4 - 7 = 3", "-3", False),
        (r"thinking 5, 6, \boxed{1{,}234} apples, 8", "1234", True),
        (r"\boxed{0.50}", "1/2", True),
        ("nothing", "0", False),
    ],
)
def test_numbers_are_compared_exactly(text: str, reference: str, correct: bool) -> None:
    assert grade_number(text, reference).correct is correct


@pytest.mark.parametrize(
    "text, correct",
    [
        (r"\boxed{B}", True),
        (r"\boxed{(B)}", True),
        (r"\boxed{\text{B}}", True),
        (r"\boxed{\textbf{(B)} 42}", True),
        (r"\boxed{A} no, \boxed{B}", True),
        ("The answer is (B).", True),
        (r"\boxed{C}", False),
        (r"\boxed{Both}", False),
        ("B", False),
    ],
)
def test_choices_are_the_letter_in_the_box(text: str, correct: bool) -> None:
    assert grade_choice(text, "B", "ABCD").correct is correct


NUMBERS = [
    ("The answer is $9{,}500.", "9500"),
    (r"\boxed{9\,500}", "9500"),
    (r"\boxed{9\!,500}", "9500"),
    (r"\boxed{9 500}", "9500"),
    ("9\u202f500 in all", "9500"),
    (r"\boxed{1,234,567.50}", "1234567.5"),
    (r"\boxed{18 \text{ m}^2}", "18"),
    (r"\boxed{18\text{ dollars per 2 hours}}", "18"),
    (r"\boxed{18\,\mathrm{km}/\mathrm{h}}", "18"),
    (r"\boxed{\$18.00}", "18"),
    (r"\boxed{18\%}", "18"),
    (r"\boxed{x = 18}", "18"),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    (r"\boxed{\dfrac12}", "0.5"),
    (r"\boxed{2\frac{1}{2}}", "5/2"),
    (r"\boxed{-\frac{1}{2}}", "-1/2"),
    ("it is 2 1/2 hours", "2.5"),
    (r"\boxed{1e3}", "1000"),
    (r"\boxed{1.5 \times 10^{3}}", "1500"),
    ("about 3×10^2 people", "300"),
    (r"\boxed{18_{10}}", "18"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{2^{3}}", "8"),
    (r"\boxed{3 \cdot 6}", "18"),
    ("The area is 18 m^2.", "18"),
    ("#### 18", "18"),
    ("#### 1,800\nChecked twice: 3 ways.", "1800"),
    ("The answer is 18 dollars for 2 people.", "18"),
    ("**Answer:** $18", "18"),
    ("So the final answer is: 3 + 15 = 18", "18"),
    ("minus: \u22125", "-5"),
    ("a loss of $ -5.00", "-5"),
    ("it costs .5 dollars", "1/2"),
]


@pytest.mark.parametrize(("text", "reference"), NUMBERS)
def test_the_number_counts_and_not_its_last_digits(text: str, reference: str) -> None:
    assert grade_number(text, reference).correct


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"A wrong one: \boxed{7 \text{ m}^2}", "2"),
        (r"\boxed{\frac{5}{2}}", "2"),
        (r"\boxed{\frac{5}{2}}", "5"),
        (r"\boxed{1,500}", "500"),
        (r"\boxed{9\,500}", "500"),
        (r"\boxed{18_{10}}", "10"),
        (r"\boxed{1e3}", "3"),
        (r"\boxed{2^{3}}", "3"),
        ("The area is 18 m^2.", "2"),
        ("H2O and C4", "4"),
        ("The answer is 18 dollars for 2 people.", "2"),
        ("", "0"),
        ("no number", "0"),
        (r"\boxed{}", "0"),
        ("1/0", "0"),
    ],
)
def test_another_number_is_wrong(text: str, reference: str) -> None:
    assert not grade_number(text, reference).correct


@pytest.mark.parametrize(("one", "other"), [("1 2", "12"), ("a b", "ab"), ("1 000 0", "10000"), (r"x\ y", "xy")])
def test_blanks_between_letters_or_digits_keep_them_apart(one: str, other: str) -> None:
    assert equivalence.normalise(one) != equivalence.normalise(other)


@pytest.mark.parametrize(("one", "other"), [("( 1 , 2 )", "(1,2)"), (r"\left( 1,2 \right)", "(1,2)"), ("x + 1", "x+1")])
def test_blanks_around_signs_do_not_count(one: str, other: str) -> None:
    assert equivalence.normalise(one) == equivalence.normalise(other)
