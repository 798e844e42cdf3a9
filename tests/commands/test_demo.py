"""``make demo``, and what progress looks like in a log and on a terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import fastpower
from fastpower import progress, terminal
from fastpower.commands import demo
from tests.evaluate.toys import toy_model


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.model
def test_the_demo_compares_four_methods_and_shows_one_answer_of_each(
    smollm2: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = fastpower.load(*smollm2)
    monkeypatch.setattr(fastpower, "load", lambda: ready)
    assert demo.main(["--problems", "3"]) == 0
    printed = capsys.readouterr()
    rows = re.findall(r"^(\w+) +p\S*.* (\d)/3 +(-\d+\.\d+) +(\d+) +\d+\.\d$", printed.out, re.M)
    assert [row[0] for row in rows] == list(demo.METHODS)
    logp = {row[0]: float(row[2]) for row in rows}
    assert logp["plain"] < logp["mh"] <= 0, "sharpening raises log p"
    assert printed.out.count("log p = ") == len(demo.METHODS)
    assert not set("\r\x1b━") & set(printed.out + printed.err)


def sampled(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, seconds: float) -> str:
    monkeypatch.setattr(progress, "SECONDS", seconds)
    monkeypatch.setattr(sys, "stderr", stream)
    sampler = fastpower.make_sampler("mh", alpha=2.0, max_new_tokens=6, block=2, moves=3)
    fastpower.generate(toy_model(), [[1], [2]], sampler, seed=0, progress=True)
    return stream.getvalue()


def test_progress_in_a_log_is_whole_lines_and_none_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = sampled(monkeypatch, io.StringIO(), 0.0)
    assert lines.endswith("\n") and not set("\r\x1b━") & set(lines)
    last = lines.splitlines()[-1]
    assert re.fullmatch(
        r"sampling · \d+/\d+ · \d/2 answers( · acceptance \d\.\d\d)? · \d+ tokens( · \d+ tokens/s)? · \d+ s", last
    )
    assert sampled(monkeypatch, io.StringIO(), 3600.0) == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in sampled(monkeypatch, Terminal(), 10.0)


@pytest.mark.parametrize("stream, bars", [(io.StringIO(), False), (Terminal(), True), (None, False)])
def test_bars_are_for_terminals(stream: Any, bars: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert terminal.on_terminal() is bars


def test_bars_are_drawn_in_one_place_that_asks_whether_there_is_a_terminal() -> None:
    files = Path(fastpower.__path__[0]).rglob("*.py")
    sources = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert [name for name, text in sources.items() if "rich.progress" in text] == ["progress.py"]
    assert not [name for name, text in sources.items() if "import tqdm" in text or "from tqdm" in text]
    # the one bar of another library that is left: unpacking a packaged model takes half a minute
    assert "nullcontext() if on_terminal() else no_progress_bars()" in sources["packaged.py"]
