"""The report of `make gpu` runs whole, here on the CPU with a tiny model, and a part that fails does not end it."""

from __future__ import annotations

import json

import torch

from bench import device_report
from fastpower import kernels


def run(tmp_path, *more: str) -> tuple[int, dict]:
    arguments = ["--device", "cpu", "--tiny", "--dtype", "float32", "--rows", "1", "4", "--context", "32"]
    target = tmp_path / "device.json"
    code = device_report.main([*arguments, "--seconds", "0.01", "--tokens", "2", "--json", str(target), *more])
    return code, json.loads(target.read_text())


def test_every_kernel_and_step_has_its_time_floor_and_ratio(tmp_path, capsys):
    code, found = run(tmp_path)
    assert code == 0
    names = [row["name"] for row in found["rows"]]
    kinds = ("sample_tokens", "score_tokens", "paged_attention", "append_kv", "copy_pages", "step", "generate")
    assert all(sum(name.startswith(kind) for name in names) == 2 for kind in kinds)
    for row in found["rows"]:
        assert row["ms"] > 0
        assert row["name"].startswith("generate") or row["ratio"] > 0
    assert found["machine"]["device"] == "cpu" and found["settings"]["rows"] == [1, 4]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_a_part_that_fails_is_told_in_its_place_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def fails(*arguments, **named):
        raise torch.OutOfMemoryError("no room\nand a second line")

    monkeypatch.setattr(kernels, "append_kv", fails)
    code, found = run(tmp_path)
    assert code == 1
    errors = {row["name"]: row["error"] for row in found["rows"] if "error" in row}
    assert errors == {f"append_kv, {n} rows": "OutOfMemoryError: no room" for n in (1, 4)}
    assert "append_kv, 4 rows                  OutOfMemoryError: no room" in capsys.readouterr().out
