"""Tasks: where problems come from, what is asked, and who grades."""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from pathlib import Path

import pytest

from fastpower.evaluate import BadLine, load_task, read_rows
from fastpower.evaluate.grading.replies import solution
from fastpower.evaluate.tasks.sources import NoData


def _gzip(data: bytes) -> bytes:
    """Without the time in it: parameters of a test have the same names in every process."""
    return gzip.compress(data, mtime=0)


def test_math500_reads_both_layouts_and_asks_the_papers_question(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What is $1+1$?", "answer": "2", "id": "test/a/1.json", "source": "math"},
        {"problem": "What is $\\{2\\}$?", "answer": "\\{2\\}", "unique_id": "test/b/2.json", "level": 3},
    ]
    path = tmp_path / "math.json"
    path.write_text(json.dumps(rows))
    task = load_task("math500", data=path)
    assert [p.id for p in task.problems] == ["test/a/1.json", "test/b/2.json"]
    expected = (
        "Can you solve the following math problem? What is $1+1$? "
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    assert task.problems[0].question == expected and task.problems[0].raw_prompt is None
    assert task.grade(task.problems[1], r"it is \boxed{\{2\}}").correct


def test_packaged_problems_are_graded_correct_by_their_own_answers() -> None:
    task = load_task("math_mini")
    assert len(task.problems) == 12 and len({p.id for p in task.problems}) == 12
    for problem in task.problems:
        assert task.grade(problem, f"thus \\boxed{{{problem.reference}}}").correct
        assert not task.grade(problem, r"thus \boxed{-12345}").correct


def test_gsm8k_takes_the_number_after_the_hashes(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "because 1,000\n#### 1,234"}) + "\n")
    task = load_task("gsm8k", data=path)
    assert task.problems[0].reference == "1234"
    assert task.grade(task.problems[0], "so 1,234 apples.").correct


def test_aime_reads_capitalised_fields(tmp_path: Path) -> None:
    path = tmp_path / "aime.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"ID": "2024-I-1", "Problem": "Find it.", "Answer": 33}) + "\n")
    task = load_task("aime", data=path)
    assert (task.problems[0].id, task.problems[0].reference) == ("2024-I-1", "33")


def _gpqa(tmp_path: Path) -> Path:
    path = tmp_path / "gpqa.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))])
        writer.writerows([[f"Q{i}, which?", "right", "wrong1", "wrong2", "wrong3"] for i in range(40)])
    return path


def test_gpqa_shuffles_choices_by_seed_and_knows_the_letter(tmp_path: Path) -> None:
    path = _gpqa(tmp_path)
    task, same, other = (load_task("gpqa", data=path, seed=seed) for seed in (5, 5, 6))
    letters = [p.reference for p in task.problems]
    assert [p.question for p in task.problems] == [p.question for p in same.problems]
    assert letters != [p.reference for p in other.problems]
    assert {*letters} == {*"ABCD"}
    for problem in task.problems:
        assert f"{problem.reference}) right" in problem.question
    assert task.grade(task.problems[0], f"\\boxed{{{letters[0]}}}").correct


def test_arithmetic_depends_on_its_seed_and_a_longer_set_starts_with_the_shorter() -> None:
    sizes = ((7, 1), (11, 1), (7, 2))
    short, long, other = (load_task("arithmetic", size=n, terms=3, digits=2, seed=s) for n, s in sizes)
    assert list(short.problems) == list(long.problems[:7])
    assert [p.question for p in short.problems] != [p.question for p in other.problems]
    for problem in short.problems:
        expression = problem.question.removeprefix("What is ").partition("?")[0]
        assert eval(expression) == int(problem.reference)
        assert short.grade(problem, f"It is {problem.reference}").correct
        assert not short.grade(problem, f"It is {int(problem.reference) + 1}").correct


def test_reasoning_gym_uses_its_own_scorer_and_options() -> None:
    pytest.importorskip("reasoning_gym")
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = load_task("reasoning_gym:chain_sum", size=5, seed=3, **options)
    assert len(task.problems) == 5
    for problem in task.problems:
        assert task.grade(problem, f"1 and 2 make {problem.reference}.").correct
        assert task.grade(problem, f"\\boxed{{{problem.reference}}} 99999").correct
        assert not task.grade(problem, "99999").correct
        assert not task.grade(problem, "").correct
    with pytest.raises(ValueError, match="min_terms"):
        load_task("reasoning_gym:chain_sum", size=5, minterms=2)
    with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
        load_task("reasoning_gym:chain_sums")


HUMAN = {
    "task_id": "Own/0",
    "prompt": 'from typing import List\n\n\ndef total(values: List[int]) -> int:\n    """Sum of the values."""\n',
    "test": "def check(candidate):\n    assert candidate([1, 2, 4]) == 7\n    assert candidate([]) == 0\n",
    "entry_point": "total",
    "canonical_solution": "    return sum(values)\n",
}


@pytest.mark.parametrize(
    "text, correct",
    [
        ("    return sum(values)\n\n\nprint(total([1]))\ndef junk(:", True),
        ("Sure!\n```python\ndef total(values: List[int]) -> int:\n    return sum(values)\n```\nDone.", True),
        ("```python\n    return sum(values)\n```", True),
        ("    return max(values)\n", False),
        ("while True: pass", False),
        ("", False),
    ],
)
def test_humaneval_runs_the_tests_on_completions_and_on_code_blocks(tmp_path: Path, text: str, correct: bool) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps(HUMAN) + "\n")
    task = load_task("humaneval", data=path, timeout=3.0)
    task.check()
    assert task.problems[0].raw_prompt == HUMAN["prompt"]
    assert task.grade(task.problems[0], text).correct is correct


def test_program_keeps_the_helpers_that_stand_before_the_function() -> None:
    prompt = "import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    '''doc'''\n"
    text = "```python\ndef f(x):\n    return helper(math.sqrt(x))\n```"
    expected = "import math\n\ndef helper(x):\n    return x\n\ndef f(x):\n    return helper"
    assert solution(prompt, "f", text).startswith(expected)


def test_unknown_tasks_and_options_suggest_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="unknown task 'mth500': did you mean 'math500'"):
        load_task("mth500")
    with pytest.raises(ValueError, match="unknown option of task 'arithmetic' 'digit': did you mean 'digits'"):
        load_task("arithmetic", digit=2)


def test_a_malformed_line_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"question": "a", "answer": "1"}\n\n{"question": "b", \n[1]\n{"question": "c", "answer": "3"}\n')
    with pytest.raises(BadLine, match=r"d\.jsonl, line 3: .*--skip-bad-lines"):
        read_rows(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task("gsm8k", data=path, skip_bad_lines=True)
    assert [p.reference for p in task.problems] == ["1", "3"]
    assert ["line 3" in str(w.message) or "line 4" in str(w.message) for w in caught] == [True, True]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"question": "\xff"}\n', "'.*a.jsonl' is not UTF-8 text"),
        ("a.json", b'{"question": "a"}\n{"question": "b"}\n', r"a.json, line 2: Extra data"),
        ("a.json", b'{"a": [1], "b": [2]}', r"a.json: a list of JSON objects is needed"),
        ("a.jsonl.gz", b"plain text", "'.*a.jsonl.gz' is no whole gzip file"),
        ("a.jsonl.gz", _gzip(b'{"question": "a"}\n' * 99)[:-12], "no whole gzip file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path / name)


def test_a_row_without_the_needed_fields_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(NoData, match=r"none of the fields answer.*it has text"):
        load_task("gsm8k", data=path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_task("gsm8k", data=tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"suffix '.txt'"):
        (tmp_path / "x.txt").write_text("")
        load_task("gsm8k", data=tmp_path / "x.txt")


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.ndjson", "d.csv", "d.json.gz", "d.jsonl.gz", "d.csv.gz"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    kind = name.removesuffix(".gz")[2:]
    text = {"json": '[{"question": "ü"}]', "csv": "question\nü\n"}.get(kind, '{"question": "ü"}\n')
    content = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_rows(tmp_path / name) == [{"question": "ü"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.json", b"[" * 100_000, "d.json"),
        ("d.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b"\n", "line 2"),
        ("d.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", "line 1"),
        ("d.json", b'[{"a": ' + b"1" * 5000 + b"}]", "d.json"),
        ("d.csv", b'a,b\n1,"' + b"x" * 200_000 + b'"\n', r"line \d"),
        ("d.csv", b"a,b\n1,2\n1,2,3\n", "line 3: more cells"),
        ("d.csv.gz", _gzip(b"a,b\n1,2\n" * 1000)[:40], "gzip"),
        ("d.csv.gz", _gzip(b"a,b\n1,2\n" * 9)[:10] + b"\x07" * 40, "gzip"),
        ("d.jsonl", '{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ("d.parquet", b"PAR1nonsense", "Parquet"),
    ],
)
def test_damage_of_every_kind_is_one_error_that_names_the_file(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value)
