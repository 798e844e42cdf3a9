"""Evaluations: same settings, same bytes – interrupted or not, whatever is drawn beside what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpower.chains.job import Job
from fastpower.errors import PromptTooLong
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.runs import RunError, read_config, read_records
from fastpower.evaluate.statistics import compute_matched_best_of_n
from fastpower.evaluate.summary import summarise
from fastpower.generation import prepare
from fastpower.samplers.methods import Method, parse_methods
from tests.evaluate.toys import toy_model, toy_task

METHODS = parse_methods("plain,low_temperature,mh(moves=3,block=4),ec_mh(moves=2)")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def dying(engine: Any, after: int) -> Any:
    """An engine that dies after so many answers of a call."""

    def run(items: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        for i, pair in enumerate(engine(items)):
            if i == after:
                raise Killed
            yield pair

    return run


def _bytes(path: Path) -> bytes:
    return (path / "records.jsonl").read_bytes()


@pytest.mark.parametrize("matched", [False, True])
def test_interrupted_and_resumed_with_other_batches_the_bytes_are_the_same(tmp_path: Path, matched: bool) -> None:
    evaluation = Evaluation(toy_task(), METHODS, seed=5, chains=2, match_best_of_n=matched)
    evaluate(evaluation, local_engine(toy_model, max_rows=64), tmp_path / "whole")
    for after in (1, 4, 2, 0, 7):
        with pytest.raises(Killed):
            evaluate(evaluation, dying(local_engine(toy_model, max_rows=3), after), tmp_path / "broken")
    evaluate(evaluation, local_engine(toy_model, max_rows=1), tmp_path / "broken")
    assert _bytes(tmp_path / "broken") == _bytes(tmp_path / "whole")
    records = read_records(tmp_path / "whole")
    assert len({r["id"] for r in records}) == len(records)
    asked = [r for r in records if r["chain"] < 2]
    assert len(asked) == 5 * 2 * len(METHODS)


SMALL = {"seed": 5, "chains": 1, "limit": 3}
LARGE = {"seed": 5, "chains": 3, "limit": 5}


def test_a_folder_that_is_extended_ends_like_one_that_was_asked_for_at_once(tmp_path: Path) -> None:
    engine = local_engine(toy_model, max_rows=8)
    evaluate(Evaluation(toy_task(), METHODS, **LARGE), engine, tmp_path / "whole")
    evaluate(Evaluation(toy_task(), METHODS[1:3], **SMALL), engine, tmp_path / "grown")
    before = read_records(tmp_path / "grown")
    drawn: list[dict[str, Any]] = []
    evaluate(Evaluation(toy_task(), METHODS, **LARGE), engine, tmp_path / "grown", on_record=drawn.append)
    assert _bytes(tmp_path / "grown") == _bytes(tmp_path / "whole")
    assert not {r["id"] for r in before} & {r["id"] for r in drawn}
    assert read_config(tmp_path / "grown") == read_config(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": 2}, "problems"),
        ({"chains": 1}, "chains"),
        ({"methods": METHODS[1:]}, "methods"),
        ({"methods": parse_methods("plain,mh(moves=4,block=4)")}, "methods"),
        ({"seed": 6}, "seed"),
        ({"max_new_tokens": 12}, "max_new_tokens"),
        ({"alpha": 3.0}, "alpha"),
        ({"limit": 5, "task": toy_task(7), "other": True}, "problems_digest"),
        ({"match_best_of_n": True}, "match_best_of_n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_folder_is_never_made_smaller_or_another(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {"task": toy_task(), "methods": METHODS[:3], "limit": 3, "chains": 2, "seed": 5}
    engine = local_engine(toy_model, max_rows=8)
    evaluate(Evaluation(**settings), engine, tmp_path)
    before = _bytes(tmp_path), (tmp_path / "config.json").read_bytes()
    changed = {**settings, **change}
    if changed.pop("other", False):  # more problems, but not behind the same ones
        changed["task"].problems.reverse()
    with pytest.raises(RunError, match=named):
        evaluate(Evaluation(**changed), engine, tmp_path)
    assert before == (_bytes(tmp_path), (tmp_path / "config.json").read_bytes())


def test_a_folder_is_not_extended_where_its_answers_decide_how_many_are_drawn(tmp_path: Path) -> None:
    engine = local_engine(toy_model, max_rows=8)
    evaluate(Evaluation(toy_task(), METHODS[1:3], match_best_of_n=True), engine, tmp_path)
    with pytest.raises(RunError, match="methods"):
        evaluate(Evaluation(toy_task(), METHODS, match_best_of_n=True), engine, tmp_path)


PROGRAM = """
import sys, time
import fastpower.commands.eval as command
from fastpower.cli import main
from fastpower.evaluate import tasks
from tests.evaluate.toys import toy_model, toy_task

def slow_model(args):
    model = toy_model()
    forward = model.decoder.forward
    model.decoder.forward = lambda work, draws: (time.sleep(0.004), forward(work, draws))[1]
    return model

command.load_from = slow_model
tasks._TASKS["toy"] = toy_task
sys.exit(main(["eval", "--task", "toy", "--methods", "plain,mh(moves=4,block=4)", "--chains", "3", "--max-rows", "2",
               "--out", sys.argv[1]]))
"""


REAL = ["-m", "fastpower", "eval", "--task", "arithmetic", "--n", "5", "--methods", "plain,mh(moves=3,block=4)"]
REAL += ["--max-new-tokens", "10", "--max-rows", "2", "--dtype", "bfloat16", "--out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, answers", [(["-c", PROGRAM], 30), pytest.param(REAL, 10, marks=pytest.mark.model)], ids=["toy", "smollm2"]
)
def test_an_eval_killed_with_signal_9_at_three_random_moments_resumes_to_the_same_bytes(
    tmp_path: Path, program: list[str], answers: int, request: pytest.FixtureRequest
) -> None:
    if program is REAL:
        request.getfixturevalue("smollm2")  # skips where the packaged model is not installed

    def start(out: str) -> subprocess.Popen[str]:
        command = [sys.executable, *program, str(tmp_path / out)]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)

    assert start("whole").wait() == 0
    moments = np.random.default_rng(3).integers(1, answers // 4, size=3)
    for records in moments:
        process = start("broken")
        assert process.stderr is not None
        seen = 0
        while seen < records:  # standard error says one line per record
            seen += ", log p" in process.stderr.readline()
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    held = len((tmp_path / "broken/records.jsonl").read_bytes().splitlines())
    assert moments.sum() <= held < answers
    assert start("broken").wait() == 0
    assert _bytes(tmp_path / "broken") == _bytes(tmp_path / "whole")


def test_a_finished_run_does_not_load_the_model_again(tmp_path: Path) -> None:
    evaluation = Evaluation(toy_task(), METHODS, seed=5)
    evaluate(evaluation, local_engine(toy_model), tmp_path)
    before = _bytes(tmp_path)

    def refuse() -> Any:
        raise AssertionError("the model was loaded")

    evaluate(evaluation, local_engine(refuse), tmp_path)
    assert _bytes(tmp_path) == before


def test_records_are_graded_and_complete(tmp_path: Path) -> None:
    task = toy_task()
    evaluate(Evaluation(task, METHODS, seed=5), local_engine(toy_model), tmp_path)
    references = {p.id: p.reference for p in task.problems}
    records = read_records(tmp_path, timings=True)
    for r in records:
        words = r["text"].split()
        assert r["correct"] == (bool(words) and words[-1] == references[r["problem"]])
        assert r["alpha"] == 2.5 and r["max_new_tokens"] == 11 and r["seed"] == 5
        assert len(r["token_ids"]) == len(r["entropy"]) == len(r["token_logp"]) == len(r["token_text"])
        assert "".join(r["token_text"]) == r["text"]
        assert r["seconds"] >= 0 and r["finished"] > 0
    assert {r["correct"] for r in records} == {True, False}


def test_the_seed_decides_the_answers(tmp_path: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        out = tmp_path / str(len(texts))
        evaluate(Evaluation(toy_task(), METHODS[:1], seed=seed), local_engine(toy_model), out)
        texts.append([r["text"] for r in read_records(out)])
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise AssertionError("the model was loaded")

    with pytest.raises(RunError, match="cannot be written"):
        evaluate(Evaluation(toy_task(), METHODS), local_engine(refuse), "/proc/run")
    evaluate(Evaluation(toy_task(2), METHODS[:1], seed=1), local_engine(toy_model), tmp_path)
    with pytest.raises(RunError, match="seed was 1, now 2"):
        evaluate(Evaluation(toy_task(2), METHODS[:1], seed=2), local_engine(refuse), tmp_path)
    with pytest.raises(RunError, match="problems_digest"):
        evaluate(Evaluation(toy_task(1), METHODS[:1], seed=1), local_engine(refuse), tmp_path)


def test_an_answer_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    evaluation = Evaluation(toy_task(), METHODS[:2], seed=1)

    def failing(items: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any]]]:
        yield from local_engine(toy_model)(items[1:])
        raise ArithmeticError("one answer failed")

    with pytest.raises(ArithmeticError):
        evaluate(evaluation, failing, tmp_path / "run")
    assert len(read_records(tmp_path / "run")) == 8
    evaluate(evaluation, local_engine(toy_model), tmp_path / "run")
    evaluate(evaluation, local_engine(toy_model), tmp_path / "whole")
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_best_of_n_spends_at_least_the_compute_of_every_method(tmp_path: Path) -> None:
    evaluate(Evaluation(toy_task(), METHODS, seed=3, match_best_of_n=True), local_engine(toy_model), tmp_path)
    records = read_records(tmp_path)
    plain = [r for r in records if r["method"] == "plain"]
    assert len(plain) > 5
    for method in ("mh(block=4,moves=3)", "ec_mh(moves=2)"):
        budgets = {r["problem"]: float(r["decoded_tokens"]) for r in records if r["method"] == method}
        best = compute_matched_best_of_n(plain, budgets)
        assert len(best) == 5
        assert all(r["budget_met"] and r["decoded_tokens"] >= budgets[r["problem"]] for r in best)
    rows = {row.method: row for row in summarise(records, chains=1, match_best_of_n=True)}
    assert rows["plain"].answers == 5  # candidates of best-of-N do not count as plain answers
    assert rows["best-of-N @ ec_mh(moves=2)"].logp > rows["plain"].logp


def test_settings_are_checked_before_anything_runs() -> None:
    task = toy_task()
    for error, kwargs in {
        "unknown method 'mhh': did you mean 'mh'": {"methods": [Method("mhh")]},
        "no setting 'move'": {"methods": [Method("mh", {"move": 3})]},
        "chains must be at least 1": {"methods": METHODS, "chains": 0},
        "n must be at least 1": {"methods": METHODS, "limit": 0},
        "match_best_of_n needs a method": {"methods": [Method("plain")], "match_best_of_n": True},
    }.items():
        with pytest.raises(ValueError, match=error):
            Evaluation(task, **kwargs)


def test_shared_settings_reach_the_methods_that_have_them() -> None:
    evaluation = Evaluation(toy_task(), METHODS, shared={"moves": 9, "block": None})
    samplers = evaluation.samplers()
    assert samplers["ec_mh(moves=2)"].moves == 2  # its own setting wins
    other = Evaluation(toy_task(), parse_methods("plain,mh"), shared={"moves": 9}).samplers()
    assert other["mh"].moves == 9


def test_a_prompt_that_does_not_fit_names_the_problem() -> None:
    model = toy_model()
    model.decoder.max_length = 12
    job = Evaluation(toy_task(), METHODS).plan()[0][0]
    with pytest.raises(PromptTooLong, match=r"'toy/p0' has 2 tokens.*at most 10"):
        prepare(model, job)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain, mh", [Method("plain"), Method("mh")]),
        ("mh(moves=4,block=32),smc", [Method("mh", {"moves": 4, "block": 32}), Method("smc")]),
        ("low-temperature", [Method("low_temperature")]),
        ("mh(skip=false,scheme=residual)", [Method("mh", {"skip": False, "scheme": "residual"})]),
        ([{"name": "mh", "moves": 4}, "plain"], [Method("mh", {"moves": 4}), Method("plain")]),
    ],
)
def test_methods_are_read(text: Any, expected: list[Method]) -> None:
    assert parse_methods(text) == expected


@pytest.mark.parametrize("text", ["", "mh(", "mh(4)", "mh,mh", "a b"])
def test_methods_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"method|setting"):
        parse_methods(text)


def test_records_of_a_run_are_json_lines_that_other_tools_read(tmp_path: Path) -> None:
    evaluate(Evaluation(toy_task(2), METHODS[:1]), local_engine(toy_model), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [r["problem"] for r in rows] == ["p0", "p1"]
