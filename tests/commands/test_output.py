"""What becomes of answers on their way out: closed pipes, full disks, narrow encodings, terminals that obey text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastpower.cli import main
from fastpower.decoders.toy import ToyDecoder
from fastpower.terminal import escaped, shown
from tests.evaluate.toys import toy_model

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--max-new-tokens", "6", "--block", "3", "--moves", "2", "--quiet"]
ANSWER = "é 4 你好 \U0001f600 \udc80"

PROGRAM = f"""
import sys
import fastpower.commands.compare as compare, fastpower.commands.sample as sample
from fastpower.cli import main
from fastpower.decoders.toy import ToyDecoder
from tests.evaluate.toys import toy_model

ToyDecoder.decode = lambda self, tokens: {ANSWER!r}
sample.load_from = compare.load_from = lambda args: toy_model()
sys.exit(main(sys.argv[1:]))
"""


def program(*arguments: str, **options) -> subprocess.CompletedProcess:
    options.setdefault("stdout", subprocess.PIPE)
    environment = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-c", PROGRAM, *arguments, *FAST]
    return subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, timeout=300, **options)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_answer_is_lost_to_an_encoding_and_json_stays_json(encoding):
    done = program("sample", "1", "2 3", "--json", env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    answers = [json.loads(line) for line in done.stdout.decode(encoding).splitlines()]
    assert [answer["text"] for answer in answers] == [ANSWER] * 2


@pytest.mark.parametrize("command", [["sample", "1"], ["compare", "1", "--methods", "plain"]])
def test_text_that_an_encoding_lacks_is_written_as_escapes(command):
    done = program(*command, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert r"\xe9 4 \u4f60\u597d \U0001f600 \udc80" in done.stdout.decode("ascii")


@pytest.mark.parametrize("command", [["sample", "1", "2", "--json"], ["compare", "1"]])
def test_a_reader_that_has_gone_is_no_failure(command):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = program(*command, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_broken_pipe_of_another_kind_is_a_failure(monkeypatch, capsys):
    def broken(args):
        raise BrokenPipeError(32, "worker has gone")

    monkeypatch.setattr("fastpower.commands.sample.load_from", broken)
    assert main(["sample", "1", *FAST]) == 3
    assert "worker has gone" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("command", [["sample", "1", "--json"], ["compare", "1"]])
def test_output_to_a_full_disk_is_a_failure_in_one_line(command):
    with open("/dev/full", "wb") as full:
        done = program(*command, stdout=full)
    assert done.returncode == 3
    assert done.stderr.decode().splitlines() == ["fastpower: failed: [Errno 28] No space left on device"]


def test_a_closed_standard_output_is_no_traceback():
    arguments = ["sample", "1", "--json", *FAST]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stderr == b""


NASTY = "a\x1b]0;owned\x07\x1b[2Jb\x9b31m\rc\x08\x7f \u202eevil\u2066 \ud800\ttab\r\nnext\nüñ"


def test_escapes_leave_no_control_character_but_tabs_and_newlines():
    text = escaped(NASTY + "".join(map(chr, range(0xA0))))
    assert not [c for c in text if c not in "\t\n" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0)]
    assert text.startswith(r"a\x1b]0;owned\x07\x1b[2Jb\x9b31m\rc\x08\x7f \u202eevil\u2066 \ud800" + "\ttab\nnext\nüñ")


@pytest.mark.parametrize("command", [["sample", "1", "2"], ["compare", "1", "--methods", "plain"]])
@pytest.mark.parametrize("terminal", [True, False])
def test_answers_do_not_command_a_terminal_and_reach_programs_as_they_are(command, terminal, monkeypatch, capsys):
    monkeypatch.setattr(f"fastpower.commands.{command[0]}.load_from", lambda args: toy_model())
    monkeypatch.setattr(ToyDecoder, "decode", lambda self, tokens: "4 \x1b]0;owned\x07 [red]5[/red]")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert main([*command, *FAST]) == 0
    out = capsys.readouterr().out
    assert ("\x1b]0;owned" in out) is not terminal
    assert (r"\x1b]0;owned\x07" in out) is terminal
    assert "[red]5[/red]" in out


def test_a_prompt_is_no_markup(monkeypatch, capsys):
    monkeypatch.setattr("fastpower.commands.compare.load_from", lambda args: toy_model())
    monkeypatch.setattr(ToyDecoder, "encode", lambda self, text: [1])
    assert main(["compare", "1 [/bold] 2 [red]", "--methods", "plain", *FAST]) == 0
    assert "1 [/bold] 2 [red]" in capsys.readouterr().out


def test_errors_do_not_command_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["sample", "1", "--model", "/nowhere/\x1b[2J", *FAST]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert shown("\x1b", sys.stdout) == "\x1b"
