"""Are two mathematical answers equal? math-verify in a process of its own.

math-verify stops long computations with SIGALRM, which works only in a main thread and not inside sympy's big-integer
loops. A worker process makes both harmless: any thread may ask, and an answer that hangs or eats memory costs the
worker, which is replaced, and counts as wrong.
"""

from __future__ import annotations

import atexit
import json
import re
import select
import subprocess
import sys
import threading
from pathlib import Path

#: Seconds for one comparison. math-verify's own limits are 5 s for each of its three steps.
TIMEOUT = 20.0
START = 300.0  #: seconds for the worker to import sympy: a busy machine must not turn a right answer into a wrong one
MEMORY = 4 << 30  #: bytes of address space for the worker


def normalise(answer: str) -> str:
    r"""Equal strings after this are equal answers.

    ``$``, ``\left``/``\right``, LaTeX spacing and blanks are gone, but for blanks that keep letters or digits apart:
    "1 2" is not "12".
    """
    text = _undelimited(answer).strip("$").rstrip(".")
    text = re.sub(r"\\displaystyle(?![a-zA-Z])|\\[!,]", "", text)
    text = re.sub(r"\\[;: ]", " ", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", re.sub(r"\s+", " ", text))


def _undelimited(text: str) -> str:
    r"""Without ``\left`` and ``\right``; ``\left.`` and ``\right.`` stand for no delimiter at all."""
    return re.sub(r"\\(?:left|right)(?![a-zA-Z])\.?", "", text).strip()


def equivalent(answer: str, reference: str) -> tuple[bool, str]:
    """(equal?, note). Never raises for an odd answer; thread-safe."""
    if normalise(answer) == normalise(reference):
        return True, ""
    return _worker.ask(_undelimited(answer), _undelimited(reference))


class _Worker:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, answer: str, reference: str) -> tuple[bool, str]:
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps([answer, reference]) + "\n")
                process.stdin.flush()
                ready = select.select([process.stdout], [], [], TIMEOUT)[0]
                line = process.stdout.readline() if ready else ""
            except BrokenPipeError:
                ready, line = [process.stdout], ""
            if line:
                equal, note = json.loads(line)
                return bool(equal), str(note)
            self._stop()
            return False, "comparison crashed" if ready else f"comparison took more than {TIMEOUT:g} s"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            script = Path(__file__).with_name("equivalence_worker.py")
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run, not for its grader
            )
            out = self._process.stdout
            assert out is not None
            if not select.select([out], [], [], START)[0] or out.readline() != "ready\n":
                self._stop()
                raise RuntimeError("the grader of mathematics did not start: check that `import math_verify` works")
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def close(self) -> None:
        with self._lock:
            self._stop()


_worker = _Worker()
atexit.register(_worker.close)
