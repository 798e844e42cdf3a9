"""``fastpower sample`` on files: what a line may be, answers as they finish, killed and resumed, presets."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastpower.cli import build_parser, main
from fastpower.commands.answers_file import AnswersFile
from fastpower.commands.presets import PRESETS
from fastpower.commands.prompt_files import read_prompts, with_prefill, with_system
from tests.evaluate.disks import largest_file
from tests.evaluate.toys import toy_model

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--max-new-tokens", "6", "--block", "3", "--moves", "2", "--quiet"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr("fastpower.commands.sample.load_from", lambda args: toy_model())


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_text_or_json_and_a_byte_order_mark_is_no_prompt(tmp_path):
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "user", "content": "4"}]
    rows = ["1 2", "", json.dumps({"prompt": "{3}", "id": 7}), json.dumps({"messages": turns, "system": "Be brief."})]
    file.write_text("\ufeff" + "\r\n".join([*rows, json.dumps({"token_ids": [1, 2]})]), encoding="utf-8")
    found = read_prompts(str(file))
    assert [asked.prompt for asked in found] == [
        "1 2",
        "{3}",
        [{"role": "system", "content": "Be brief."}, *turns],
        [1, 2],
    ]
    assert [asked.name for asked in found] == [None, "7", None, None]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no prompt"),
        ("a\n{broken", "line 2 begins with { but is not JSON"),
        ('{"text": "a"}', "needs exactly one of prompt, messages, token_ids"),
        ('{"prompt": "a", "messages": []}', "needs exactly one"),
        ('{"prompt": ""}', "is empty"),
        ('{"prompt": 3}', "of the wrong kind"),
        ('{"prompt": "a", "promt": 1}', "unknown fields: promt"),
        ('{"prompt": "a", "id": [1]}', "id must be"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "two prompts with the id 'x'"),
        ('{"token_ids": [1], "system": "s"}', "before token ids"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, capsys, content, says):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["sample", "--prompts", str(file), *FAST]) == 2
    assert says in capsys.readouterr().err


def test_standard_input_is_one_prompt_by_itself_and_one_a_line_as_a_file(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1 2\n3\n"))
    assert main(["sample", "--prompts", "-", "--json", *FAST]) == 0
    two = {record["id"]: record["token_ids"] for record in lines(capsys.readouterr().out)}
    assert main(["sample", "1 2", "3", "--json", *FAST]) == 0
    assert {record["id"]: record["token_ids"] for record in lines(capsys.readouterr().out)} == two and len(two) == 2
    assert main(["sample", *FAST]) == 2
    assert "no prompt" in capsys.readouterr().err


def test_the_same_command_goes_on_where_it_stopped_and_another_is_refused(tmp_path, capsys):
    prompts, out = tmp_path / "prompts", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(f"{1 + i % 4} {1 + i // 4}" for i in range(12)))
    command = ["sample", "--prompts", str(prompts), "--out", str(out), *FAST]
    assert main(command) == 0
    whole = out.read_bytes()
    records = {record["id"]: record["token_ids"] for record in lines(whole.decode())}
    assert len(records) == 12
    rows = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(rows[:5]) + rows[5][: len(rows[5]) // 2])  # as a kill leaves it
    assert main(command) == 0
    assert {r["id"]: r["token_ids"] for r in lines(out.read_text())} == records
    assert len(out.read_text().splitlines()) == 12
    assert main([*command, "--seed", "1"]) == 2
    assert "seed = 0, not 1" in capsys.readouterr().err
    (tmp_path / "other").write_text("mine")
    assert main(["sample", "1", "--out", str(tmp_path / "other"), *FAST]) == 2
    assert (tmp_path / "other").read_text() == "mine"


def test_one_command_writes_a_file_at_a_time(tmp_path):
    with AnswersFile(tmp_path / "a.jsonl", {"seed": 0}) as answers:
        answers.append({"id": "a"})
        with pytest.raises(ValueError, match="another process"):
            AnswersFile(tmp_path / "a.jsonl", {"seed": 0})
    with AnswersFile(tmp_path / "a.jsonl", {"seed": 0}) as answers:
        assert answers.done == {"a"}


@pytest.mark.parametrize("extra", [10, 700, 1500, 2500])
def test_a_full_disk_ends_the_command_and_the_same_command_goes_on_when_there_is_room(tmp_path, capsys, extra):
    prompts, out = tmp_path / "prompts", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join("1234"[i % 4] for i in range(4)))
    command = ["sample", "--prompts", str(prompts), "--out", str(out), "--chains", "1", *FAST]
    with largest_file(extra):
        assert main(command) == 3
    said = capsys.readouterr().err
    assert "answers.jsonl" in said and "make room" in said and "Traceback" not in said
    assert all(json.loads(line) for line in out.read_text().splitlines()) if out.exists() else True
    assert not out.exists() or out.read_bytes()[-1:] in (b"", b"\n")
    assert main(command) == 0
    assert len({record["id"] for record in lines(out.read_text())}) == len(out.read_text().splitlines()) == 4


def test_damage_in_the_middle_of_a_file_is_not_thrown_away(tmp_path):
    (tmp_path / "a.jsonl.settings").write_text('{"seed": 0}')
    (tmp_path / "a.jsonl").write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is no answer"):
        AnswersFile(tmp_path / "a.jsonl", {"seed": 0})
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 3


PROGRAM = """
import sys
import fastpower.commands.sample as sample
from fastpower.cli import main
from tests.integrations.server.toys import slow_model

sample.load_from = lambda args: slow_model(0.001)
sys.exit(main(sys.argv[1:]))
"""


def test_two_hundred_prompts_killed_at_random_moments_are_answered_once_each(tmp_path):
    prompts, out = tmp_path / "prompts", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(f"{1 + i % 4} {1 + i // 4 % 4} {1 + i // 16 % 4} {1 + i // 64}" for i in range(200)))
    arguments = ["sample", "--prompts", str(prompts), "--out", str(out), "--max-rows", "4", *FAST]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    generator = random.Random(0)
    for _ in range(3):
        size = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        while process.poll() is None and (not out.exists() or out.stat().st_size == size):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert subprocess.run(command, cwd=ROOT, timeout=600).returncode == 0
    ids = [record["id"] for record in lines(out.read_text())]
    assert len(ids) == len(set(ids)) == 200


def test_system_and_prefill_make_conversations():
    assert with_prefill(with_system("q", "s"), "a") == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    with pytest.raises(ValueError, match="already"):
        with_prefill([{"role": "assistant", "content": "x"}], "a")
    with pytest.raises(ValueError, match="already"):
        with_system([{"role": "system", "content": "x"}], "a")
    with pytest.raises(ValueError, match="token ids"):
        with_prefill([1, 2], "a")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_papers_method_and_other_flags_replace_single_settings(name):
    from fastpower.commands.options import sampler_from

    chosen = PRESETS[name]
    sampler = sampler_from(build_parser().parse_args(["sample", "x", "--preset", name]))
    assert (sampler.method, sampler.target.alpha, sampler.target.horizon) == (chosen.method, 4.0, 3072)
    assert all(getattr(sampler, key) == value for key, value in chosen.settings.items())
    mine = sampler_from(build_parser().parse_args(["sample", "x", "--preset", name, "--alpha", "2", "--block", "8"]))
    assert mine.target.alpha == 2.0 and mine.block == 8
    assert mine.target.horizon == 3072
