"""A real server process with the toy model, started as a user's supervisor would start it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import sys, uvicorn
from fastpower.integrations.server.app import Settings, create_app
from tests.integrations.server.toys import chatty_model, slow_model

settings = Settings(max_new_tokens=9, max_waiting=int(sys.argv[1]), max_body=65536, body_seconds=1.0)
app = create_app(chatty_model() if sys.argv[2] == "chatty" else slow_model(float(sys.argv[2])), settings)
uvicorn.run(app, port=0, log_level="info", access_log=True, http="h11", h11_max_incomplete_event_size=65536)
"""


class Served:
    """A running process: its address, and what it has written."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._up.wait(300):
            raise RuntimeError("".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                self.url = found[1]
                self._up.set()
        self._up.set()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: the exit code."""
        self.process.send_signal(how)
        code = self.process.wait(120)
        self._reader.join(60)
        return code


@contextlib.contextmanager
def served(max_waiting: int = 256, delay: float | str = 0.0) -> Iterator[Served]:
    """A server whose every forward takes ``delay`` seconds more; "chatty": one whose model has a chat template."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(max_waiting), str(delay)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Served(process)
    finally:
        process.kill()
        process.wait(60)
