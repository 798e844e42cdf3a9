"""Whatever a disk does, a file of lines holds whole lines: all that were acknowledged, none twice, none glued."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fastpower.cli import main
from fastpower.errors import NotWritten
from fastpower.evaluate import journal
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.journal import Journal, replace_text
from fastpower.evaluate.runs import Run, RunError, read_records
from fastpower.samplers.methods import parse_methods
from tests.evaluate.disks import FaultyOs, largest_file
from tests.evaluate.toys import toy_model, toy_task


def _ids(file: Path) -> list[int]:
    content = file.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line)["id"] for line in content.splitlines()]


@pytest.mark.parametrize("calls", [("write",), ("write", "fsync"), ("write", "fsync", "ftruncate")])
@pytest.mark.parametrize("seed", range(8))
def test_faults_at_random_points_lose_double_and_glue_nothing(tmp_path, monkeypatch, seed, calls) -> None:
    """Rows are tried until they are acknowledged, as a resumed run does; now and then the file is opened anew."""
    file, faulty, chosen = tmp_path / "j", FaultyOs(seed, 0.25, calls), random.Random(seed)
    monkeypatch.setattr(journal, "os", faulty)
    book, acknowledged = Journal(file), []
    for i in range(60):
        row = {"id": i, "text": "é\ud800" * chosen.randrange(400)}
        while True:
            try:
                book.append(row)
                acknowledged.append(i)
                break
            except NotWritten as error:
                assert str(file) in str(error) and "make room" in str(error)
            except KeyboardInterrupt:
                pass
            if "ftruncate" not in calls:  # taken back at once
                assert _ids(file) == acknowledged
            if chosen.random() < 0.2:  # the process ends and another goes on
                book.close()
                monkeypatch.setattr(journal, "os", __import__("os"))
                book = Journal(file)
                monkeypatch.setattr(journal, "os", faulty)
                if _ids(file) != acknowledged:  # complete on disk although nobody was told: resuming reads it
                    assert _ids(file) == [*acknowledged, i]
                    acknowledged.append(i)
                    break
    assert _ids(file) == acknowledged == list(range(60)) and faulty.faults > 20


def test_a_write_of_nothing_is_a_full_disk_and_not_for_ever(tmp_path, monkeypatch) -> None:
    with Journal(tmp_path / "j") as book:
        monkeypatch.setattr(journal.os, "write", lambda fd, data: 0)
        with pytest.raises(NotWritten, match="No space left"):
            book.append({"id": 1})


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_text_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, call) -> None:
    def fails(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    replace_text(tmp_path / "t", "old")
    monkeypatch.setattr(journal.os, call, fails)
    with pytest.raises(NotWritten, match="No space left"):
        replace_text(tmp_path / "t", "new")
    monkeypatch.undo()
    assert (tmp_path / "t").read_text() in (("old",) if call != "open" else ("new",))
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def _evaluation() -> Evaluation:
    return Evaluation(toy_task(4), parse_methods("plain,mh(moves=1),smc(particles=2)"), seed=1)


def test_a_run_on_a_disk_that_fills_up_again_and_again_ends_with_the_same_bytes(tmp_path) -> None:
    evaluate(_evaluation(), local_engine(toy_model), tmp_path / "whole")
    whole = (tmp_path / "whole/records.jsonl").read_bytes()
    sizes = [*range(100, len(whole), len(whole) // 9), len(whole) - 1]
    stops, phases = 0, []
    for size in sizes:
        try:
            with largest_file(size):
                evaluate(
                    _evaluation(),
                    local_engine(toy_model),
                    tmp_path / "run",
                    on_phase=lambda *told: phases.append(told[0]),
                )
        except NotWritten as error:
            assert "make room" in str(error) and str(tmp_path / "run") in str(error)
            stops += 1
        if (tmp_path / "run/records.jsonl").exists():
            read_records(tmp_path / "run")
            _ids(tmp_path / "run/timings.jsonl")
    assert stops == len(sizes)
    assert phases[:2] == ["plain", "plain"], "a run went on to the next method although nothing could be kept"
    evaluate(_evaluation(), local_engine(toy_model), tmp_path / "run")
    assert (tmp_path / "run/records.jsonl").read_bytes() == whole
    assert not list((tmp_path / "run").glob("*.new")) and not list((tmp_path / "run").glob(".*.new"))


def test_the_command_says_which_disk_and_goes_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("fastpower.commands.eval.load_from", lambda args: toy_model())
    monkeypatch.setattr("fastpower.evaluate.tasks.load_task", lambda *a, **k: toy_task(3))
    command = ["eval", "--task", "toy", "--methods", "plain", "--out", str(tmp_path / "run"), "--quiet"]
    with largest_file(2000):
        assert main(command) == 3
    assert "records.jsonl' could not be written" in capsys.readouterr().err
    assert main(command) == 0


def test_a_glued_line_of_an_older_version_is_set_aside_and_drawn_again(tmp_path) -> None:
    evaluate(_evaluation(), local_engine(toy_model), tmp_path)
    file = tmp_path / "records.jsonl"
    whole = file.read_bytes()
    rows = whole.splitlines(keepends=True)
    file.write_bytes(rows[0] + rows[1][:40] + b"".join(rows[2:]))
    with pytest.raises(ValueError, match=r"line 2.*--skip-bad-lines"):
        evaluate(_evaluation(), local_engine(toy_model), tmp_path)
    evaluate(_evaluation(), local_engine(toy_model), tmp_path, skip_bad_lines=True)
    assert file.read_bytes() == whole
    assert (tmp_path / "records.jsonl.bad").read_bytes() == rows[1][:40] + rows[2]


def test_a_run_is_locked_for_other_threads_and_free_after_an_error(tmp_path) -> None:
    with Run(tmp_path, {"seed": 1}), pytest.raises(RunError, match="another process"):
        Run(tmp_path, {"seed": 1})
    with pytest.raises(RunError, match="other settings"):
        Run(tmp_path, {"seed": 2})
    Run(tmp_path, {"seed": 1}).close()
