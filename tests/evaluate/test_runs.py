"""A run folder loses nothing, doubles nothing, and ends with the same bytes however often it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpower.evaluate.rows import BadLine
from fastpower.evaluate.runs import Run, RunError, check_writable, read_config, read_records

CONFIG = {"task": "arithmetic", "seed": 3, "methods": ["plain", "mh"]}


def _record(i: int) -> dict[str, Any]:
    return {"id": f"r{i}", "text": f"α\u2028 {i}", "logp": -0.1 * i, "seconds": random.random(), "forwards": i}


def test_records_read_back_without_timings_and_with_them(tmp_path: Path) -> None:
    with Run(tmp_path / "run", CONFIG) as run:
        run.append(_record(1))
        run.append({"id": "r2", "logp": np.float32(-0.5), "entropy": np.array([0.25, np.nan]), "seconds": 2.0})
    first, second = read_records(tmp_path / "run")
    assert first == {"id": "r1", "text": "α\u2028 1", "logp": -0.1}
    assert second == {"id": "r2", "logp": -0.5, "entropy": [0.25, None]}
    assert read_records(tmp_path / "run", timings=True)[1]["seconds"] == 2.0
    assert read_config(tmp_path / "run")["config"] == CONFIG
    assert "torch" in read_config(tmp_path / "run")["versions"]


def test_a_record_cannot_be_appended_twice(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        run.append(_record(1))
        with pytest.raises(ValueError, match="'r1' is already"):
            run.append(_record(1))


def test_a_torn_last_line_is_cut_on_resume_and_ignored_by_readers(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        run.append(_record(1))
        run.append(_record(2))
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    assert [r["id"] for r in read_records(tmp_path)] == ["r1"]
    with Run(tmp_path, CONFIG) as run:
        assert run.done == {"r1"}
        run.append(_record(2))
        run.finalise(["r2", "r1"])
    assert [r["id"] for r in read_records(tmp_path)] == ["r2", "r1"]


def test_a_damaged_line_inside_is_an_error_with_its_number(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        run.append(_record(1))
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"id": \n{"id": "r3"}\n')
    with pytest.raises(BadLine, match=r"records\.jsonl, line 2"):
        Run(tmp_path, CONFIG)
    with pytest.warns(UserWarning, match="line 2"):
        assert [r["id"] for r in read_records(tmp_path, skip_bad_lines=True)] == ["r1", "r3"]


def test_finalise_is_repeatable_and_appending_goes_on_after_it(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG) as run:
        for i in (2, 0, 1):
            run.append(_record(i))
        run.finalise(["r0", "r1", "r2"])
        once = (tmp_path / "records.jsonl").read_bytes()
        run.finalise(["r0", "r1", "r2"])
        assert (tmp_path / "records.jsonl").read_bytes() == once
        run.append(_record(3))
    assert [r["id"] for r in read_records(tmp_path)] == ["r0", "r1", "r2", "r3"]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    Run(tmp_path, CONFIG).close()
    with pytest.raises(RunError, match="seed was 3, now 4"):
        Run(tmp_path, {**CONFIG, "seed": 4})
    Run(tmp_path, CONFIG).close()


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with Run(tmp_path, CONFIG), pytest.raises(RunError, match="another process"):
        Run(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        check_writable(tmp_path / "file" / "run")
    with pytest.raises(RunError, match="cannot be written"):
        check_writable("/proc/run")


def test_a_folder_without_a_whole_config_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config\.json"):
        read_config(tmp_path)
    for content, message in (('{"format": 1, ', "damaged"), ("[]", "damaged"), ('{"format": 7}', "format 7")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match=rf"config\.json.*{message}"):
            read_config(tmp_path)


WRITER = textwrap.dedent("""
    import sys, time, random
    from fastpower.evaluate.runs import Run
    path, total = sys.argv[1], int(sys.argv[2])
    order = [f"r{i}" for i in range(total)]
    with Run(path, {"seed": 1}) as run:
        todo = [name for name in order if name not in run.done]
        random.shuffle(todo)
        for name in todo:
            run.append({"id": name, "text": name * 500, "seconds": time.time()})
            print(name, flush=True)
        run.finalise(order)
""")


def test_killed_at_random_moments_and_resumed_the_bytes_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def start(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(path), "150"]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    whole = start(tmp_path / "whole")
    whole.communicate()
    generator = np.random.default_rng(11)
    killed = 0
    for _ in range(3):
        process = start(tmp_path / "broken")
        assert process.stdout is not None
        for _ in range(int(generator.integers(1, 40))):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    last = start(tmp_path / "broken")
    out, _ = last.communicate()
    assert killed == 3 and 0 < len(out.split()) < 150 and last.returncode == 0
    assert (tmp_path / "broken/records.jsonl").read_bytes() == (tmp_path / "whole/records.jsonl").read_bytes()
    ids = [json.loads(line)["id"] for line in (tmp_path / "broken/timings.jsonl").read_text().splitlines()]
    assert {*ids} == {f"r{i}" for i in range(150)}
