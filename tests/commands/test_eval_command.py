"""``fastpower eval`` as a user types it: tables, config files, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpower.cli import build_parser, main
from fastpower.commands import eval as command
from fastpower.evaluate import tasks
from tests.evaluate.toys import toy_model, toy_task


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks._TASKS, "toy", toy_task)
    monkeypatch.setattr(command, "load_from", lambda args: toy_model())


def _eval(*args: str) -> int:
    return main(["eval", "--quiet", *args])


def test_eval_prints_a_table_writes_a_report_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    args = ["--task", "toy", "--methods", "plain,mh(moves=2)", "--chains", "2", "--out", out]
    assert _eval(*args) == 0
    text = capsys.readouterr().out
    assert "mh(moves=2)" in text and "pass@k" in text and "majority vote" in text and "toy: 5 problems" in text
    assert (tmp_path / "run/report.html").is_file()
    before = (tmp_path / "run/records.jsonl").read_bytes()
    assert _eval(*args) == 0
    assert _eval("--report", out) == 0
    assert (tmp_path / "run/records.jsonl").read_bytes() == before


def test_json_has_one_object_per_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _eval("--task", "toy", "--methods", "plain,mh(moves=2)", "--n", "3", "--json", "--out", str(tmp_path)) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows] == ["plain", "mh(moves=2)"]
    assert all(row["answers"] == 3 and 0 <= row["accuracy"][0] <= 1 for row in rows)
    assert rows[1]["acceptance"] is not None and rows[1]["against"] is not None


@pytest.mark.parametrize("options", [[], ["--task-options", "size=200"]])
def test_a_procedural_task_makes_as_many_problems_as_are_asked_for(options: list[str]) -> None:
    args = build_parser().parse_args(["eval", "--task", "arithmetic", "--n", "103", *options])
    assert len(command.evaluation_from(args).problems) == 103


@pytest.mark.parametrize(
    "args, message",
    [
        (["--task", "toi", "--out", "RUN"], "unknown task 'toi': did you mean 'toy'"),
        (["--task", "toy", "--out", "RUN", "--methods", "plane"], "unknown method 'plane': did you mean 'plain'"),
        (["--task", "toy", "--out", "RUN", "--methods", "mh(move=2)"], "no setting 'move'"),
        (["--task", "toy", "--out", "RUN", "--n", "6"], "n = 6 problems are asked for, but task 'toy' has 5"),
        (["--task", "toy"], "--out is needed"),
        (["--out", "RUN"], "--task is needed"),
        (["--task", "toy", "--out", "/proc/run"], "cannot be written"),
        (["--task", "toy", "--out", "RUN", "--task-options", "length=3"], "unknown option of task 'toy' 'length'"),
        (["--task", "math500", "--data", "nowhere.json", "--out", "RUN"], "does not exist"),
        (["--report", "nowhere"], "not a run folder"),
        (["--task", "toy", "--out", "RUN", "--n", "0"], "n must be at least 1"),
        (["--task", "toy", "--out", "RUN", "--workers", "2"], "--workers needs --engine ray"),
        (["--task", "gsm8k", "--data", ".", "--out", "RUN"], "data file '.' does not exist"),
        (["--task", "toy", "--out", "RUN", "--alpha", "-1"], "alpha must be"),
    ],
)
def test_bad_input_exits_with_2_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert _eval(*[str(tmp_path / "run") if a == "RUN" else a for a in args]) == 2
    assert message in capsys.readouterr().err


def test_a_malformed_line_stops_the_run_unless_it_may_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1 2", "answer": "3"}\n{broken\n{"question": "2 2", "answer": "4"}\n')
    monkeypatch.setattr("fastpower.evaluate.tasks.mathematics.PROMPT", "{}")
    args = ["--task", "gsm8k", "--data", str(data), "--methods", "plain", "--max-new-tokens", "5"]
    assert _eval(*args, "--out", str(tmp_path / "run")) == 2
    assert "data.jsonl, line 2" in capsys.readouterr().err
    assert not (tmp_path / "run/records.jsonl").exists()
    with pytest.warns(UserWarning, match="line 2"):
        assert _eval(*args, "--skip-bad-lines", "--out", str(tmp_path / "run")) == 0
    assert len((tmp_path / "run/records.jsonl").read_text().splitlines()) == 2


def test_a_config_file_has_the_names_of_the_flags_and_flags_win(tmp_path: Path) -> None:
    config = tmp_path / "eval.yaml"
    config.write_text("task: toy\nn: 2\nalpha: 3\nseed: 4\nmethods: [plain, {name: mh, moves: 2}]\nmax_new_tokens: 7\n")
    assert _eval("--config", str(config), "--seed", "9", "--out", str(tmp_path / "run")) == 0
    content = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (content["problems"], content["alpha"], content["seed"], content["max_new_tokens"]) == (2, 3.0, 9, 7)
    assert [m["label"] for m in content["methods"]] == ["plain", "mh(moves=2)"]
    config.write_text("limit: 3\ntask: toy\nmethods: plain\n")  # the harness's name for n
    assert _eval("--config", str(config), "--out", str(tmp_path / "other")) == 0
    assert len((tmp_path / "other/records.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("sead: 3\n", "unknown key 'sead': did you mean 'seed'"),
        ("seed: three\n", "seed = 'three'"),
        ("seed: [1, 2]\n", "one value is needed"),
        ("json: 3\n", "true or false is needed"),
        ("engine: clay\n", "one of local, ray is needed"),
        ("- a\n", "mapping"),
        ("a: [\n", "not YAML"),
        (None, "does not exist"),
    ],
)
def test_mistakes_in_a_config_file_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    config = tmp_path / "eval.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(SystemExit) as stop:
        _eval("--config", str(config), "--task", "toy", "--out", str(tmp_path / "run"))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    program = "import sys; from fastpower.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False"


def test_check_foretells_and_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--task", "toy", "--methods", "plain,mh(moves=2),apps", "--chains", "2", "--out", str(tmp_path / "run")]
    assert _eval("--check", *args) == 0
    text = capsys.readouterr().out
    assert "toy: 5 problems" in text and "plain: 10 answers" in text and "depends on the model" in text
    assert not (tmp_path / "run/records.jsonl").exists() and not (tmp_path / "run/config.json").exists()
    assert _eval("--check", "--json", *args[:4]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_per_second"] > 0 and found["methods"][2]["tokens"] is None


def test_check_fails_where_the_run_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert _eval("--check", "--task", "toi") == 2
    assert "did you mean 'toy'" in capsys.readouterr().err
