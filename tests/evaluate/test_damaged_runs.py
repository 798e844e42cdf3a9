"""A run folder that was edited or damaged: one error that names file, line and field, or the same report."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpower.cli import main
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.report import write_report
from fastpower.evaluate.report.table import render
from fastpower.evaluate.runs import read_config, read_records
from fastpower.evaluate.summary import summarise
from fastpower.samplers.methods import parse_methods
from tests.evaluate.toys import toy_model, toy_task

pytestmark = pytest.mark.filterwarnings("ignore:a bootstrap over")
METHODS = "plain,mh(moves=2,block=6),tempering(moves=1,block=6),smc(particles=3,block=4,ramp=0)"
DELETED = object()
VALUES = [None, True, -1, 2.5, "text", [], {}, [None], [1, "a"], [[]], float("nan"), float("inf"), 10**400, DELETED]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    evaluate(Evaluation(toy_task(2), parse_methods(METHODS), seed=2, chains=2), local_engine(toy_model), path)
    return path


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Every field of a line, and of the objects within; of a list of objects those of the last."""
    for name in value:
        yield (name,)
        inner = value[name]
        if isinstance(inner, dict):
            yield from ((name, *rest) for rest in _places(inner))
        elif isinstance(inner, list) and inner and isinstance(inner[-1], dict):
            yield from ((name, len(inner) - 1, *rest) for rest in _places(inner[-1]))


def _with(row: Any, place: tuple[Any, ...], value: Any) -> Any:
    row = holder = copy.deepcopy(row)
    for name in place[:-1]:
        holder = holder[name]
    if value is DELETED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return row


def _shown(path: Path) -> None:
    config = read_config(path)["config"]
    records = read_records(path, timings=True, answers=True)
    rows = summarise(records, chains=config.get("chains"), match_best_of_n=bool(config.get("match_best_of_n")))
    write_report(path, records, rows)
    render(rows, config)


@pytest.mark.parametrize("name", ["records.jsonl", "timings.jsonl"])
def test_every_field_of_every_kind_of_line_may_be_anything(name: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    lines = (run / name).read_text().splitlines()
    kinds = [0, 4, 8, len(lines) - 1] if name == "records.jsonl" else [0]
    refused = shown = 0
    for number in kinds:
        row = json.loads(lines[number])
        for place in _places(row):
            for value in VALUES:
                damaged = [*lines]
                damaged[number] = json.dumps(_with(row, place, value))
                (tmp_path / name).write_text("\n".join(damaged) + "\n")
                try:
                    records = read_records(tmp_path, timings=True, answers=True)
                except ValueError as error:
                    said = str(error)
                    assert f"{name}, line {number + 1}: " in said and "\n" not in said
                    assert f"{place[-1]}'" in said or "tokens" in said or "literal" in said, (place, value, said)
                    refused += 1
                else:
                    rows = summarise(records, chains=2)
                    if (refused + shown) % 7 == 0 or place[0] in ("trace", "diagnostics"):
                        write_report(tmp_path, records, rows)
                    shown += 1
    assert refused > (1000 if name == "records.jsonl" else 60) and shown > 30


def test_every_field_of_the_settings_may_be_anything(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    whole = json.loads((run / "config.json").read_text())
    refused = 0
    for place in _places(whole):
        for value in VALUES:
            (tmp_path / "config.json").write_text(json.dumps(_with(whole, place, value)))
            try:
                _shown(tmp_path)
            except ValueError as error:
                assert "config.json" in str(error), (place, value, error)
                refused += 1
    assert refused > 60


def test_the_command_says_it_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    lines = (run / "records.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"logp": None})
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["eval", "--report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "records.jsonl, line 3: field 'logp' = None must be a finite number" in said and said.count("\n") == 1
    with pytest.warns(UserWarning, match="line 3"):
        assert main(["eval", "--report", str(tmp_path), "--skip-bad-lines"]) == 0
