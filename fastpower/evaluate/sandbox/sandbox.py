"""Run a program that a model wrote, contained: time, memory, processes, files and network.

What is contained, and by which layer, is listed in ``jail.py`` beside this file. Linux only. Where neither namespaces
nor Landlock can be had, nothing is run and ``SandboxUnavailable`` says why. The sandbox contains *accidents*: it is no
defence against a program that attacks the kernel, and a program that sets out to fake its own pass can do so.

Examples:
    >>> run_python("assert 1 + 1 == 2").passed
    True
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fastpower.errors import FastpowerError

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/nix/store")
_OUTPUT = 64 << 10  #: bytes of output that are kept; the rest is read and dropped
_START = 30.0  #: seconds that the sandbox may need before the program starts
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class SandboxUnavailable(FastpowerError, RuntimeError):
    """This machine offers no way to contain a program."""


class Outcome(NamedTuple):
    """What became of a program."""

    passed: bool  #: it ran to its last line
    reason: str  #: why not: ``timeout``, ``AssertionError``, ``MemoryError: …``; empty if it passed
    output: str  #: the last 64 KiB of standard output and standard error
    seconds: float  #: wall clock from the program's first line


class _NotBuilt(Outcome):
    """The program never started. Only the jail can say so: a program that prints as much has started."""


def run_python(
    program: str,
    *,
    timeout: float = 3.0,
    memory: int = 1 << 30,
    processes: int = 8,
    disk: int = 64 << 20,
    level: str | None = None,
) -> Outcome:
    """Run ``program`` in a fresh interpreter without network, in an empty folder that is thrown away.

    Whatever the program does is an Outcome.

    Args:
        program: Its source.
        timeout: Seconds of wall clock.
        memory: Bytes of address space per process, and of memory that all of them hold together.
        processes: How many it may have at once, threads included.
        disk: Bytes it may write.
        level: ``"namespaces"`` or ``"landlock"``; by default the better one that works here.

    Raises:
        SandboxUnavailable: The sandbox cannot be built; nothing was run.
    """
    if timeout <= 0:
        raise ValueError(f"timeout must be positive, got {timeout}")
    try:
        program.encode()
    except UnicodeEncodeError as error:
        return Outcome(False, f"SyntaxError: the program is not text that can be written down: {error.reason}", "", 0.0)
    outcome = _run(program, level or containment(), timeout, memory, processes, disk)
    if isinstance(outcome, _NotBuilt):
        raise SandboxUnavailable(f"{outcome.reason} (level {level or containment()!r})")
    return outcome


@lru_cache(maxsize=1)
def containment() -> str:
    """The level in use, ``"namespaces"`` or ``"landlock"``.

    Raises:
        SandboxUnavailable: None works here; the reasons are named.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"running model-written code needs Linux, this is {sys.platform}")
    reasons = []
    for level in ("namespaces", "landlock"):
        if level == "landlock" and (lack := _landlock_lacks()):
            reasons.append(f"landlock: {lack}")
            continue
        outcome = _run("import json, math\nopen('x', 'w').write('y')", level, 10.0, 1 << 30, 8, 1 << 20)
        if outcome.passed:
            return level
        reasons.append(f"{level}: {outcome.reason}")
    raise SandboxUnavailable("programs written by a model cannot be contained here: " + "; ".join(reasons))


def require_sandbox() -> None:
    """Refuse to go on where there is no sandbox: before any compute.

    Raises:
        SandboxUnavailable: There is none.
    """
    containment()


def _landlock_lacks() -> str:
    from fastpower.evaluate.sandbox.jail import landlock_abi

    abi = landlock_abi()
    if abi == 0:
        return "not in this kernel"
    if abi < 6 and os.geteuid() != 0:
        return f"version {abi} cannot keep a program from signalling its own user's processes (6 can)"
    if abi < 3:
        return f"version {abi} cannot keep a program from truncating files (3 can)"
    return ""


@lru_cache(maxsize=1)
def _readable() -> list[str]:
    """Folders that a Python program needs, outermost first, none inside another."""
    paths = [*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)]
    paths += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    kept: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths if p and os.path.exists(p)} - {"/"}, key=len):
        if not any(path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return kept


def _run(program: str, level: str, timeout: float, memory: int, processes: int, disk: int) -> Outcome:
    work = tempfile.mkdtemp(prefix="fastpower-sandbox-")
    word = secrets.token_hex(16)
    verdict, verdict_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("jail.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[verdict_end],
            cwd="/",
        )
        os.close(verdict_end)
        order = {
            "program": program,
            "level": level,
            "work": work,
            "readable": _readable(),
            "python": sys.executable,
            "word": word,
            "verdict": verdict_end,
            "timeout": timeout,
            "memory": memory,
            "processes": processes,
            "disk": disk,
            "parent": os.getpid(),
            "uid": 1_000_000 + process.pid,  # one user per program: its process limit counts nobody else's
            "environment": {name: "1" for name in _THREADS},
        }
        try:
            return _watch(process, verdict, json.dumps(order).encode(), word.encode(), timeout)
        finally:
            _end(process)
    finally:
        os.close(verdict)
        with contextlib.suppress(OSError):
            _remove(work)


def _remove(work: str) -> None:
    """Delete the folder whatever a program made of it: folders without rights, or nested deeper than a path is long."""
    new = (f"{work}/{secrets.token_hex(8)}-{i}" for i in itertools.count())
    while True:
        with os.scandir(work) as found:
            entries = list(found)
        if not entries:
            break
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            with os.scandir(entry.path) as inside:
                inner = list(inside)
            for each in inner:
                if each.is_dir(follow_symlinks=False):
                    os.chmod(each.path, 0o700)
                    os.rename(each.path, next(new))
                else:
                    os.unlink(each.path)
            os.rmdir(entry.path)
    os.rmdir(work)


#: what the jail says when a program took more than its bound
_EXCESSES = {
    b"d": "OSError: it wrote more than its bound, or hid what it wrote",
    b"m": "MemoryError: its processes held more than the bound together",
}


def _watch(process: subprocess.Popen[bytes], verdict: int, order: bytes, word: bytes, timeout: float) -> Outcome:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(order)
        process.stdin.close()
    except BrokenPipeError:
        pass
    said, output = b"", b""
    begin = deadline = time.monotonic()
    deadline += _START
    late = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(verdict, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                late = True
                break
            for key, _ in selector.select(left):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fd != verdict:
                    output = (output + data)[-_OUTPUT:]
                else:
                    if not said:
                        begin = time.monotonic()
                        deadline = begin + timeout
                    said = (said + data)[: 1 + len(word)]
            if said == b"s" + word:
                break
    seconds = time.monotonic() - begin
    text = output.decode(errors="replace")
    if said == b"s" + word:
        return Outcome(True, "", text, seconds)
    excess = _EXCESSES.get(said.removeprefix(b"s")[:1])  # the first of several
    if excess is not None:
        return Outcome(False, excess, text, seconds)
    if late:
        if not said:
            return _NotBuilt(False, "sandbox: it did not start in time", text, seconds)
        return Outcome(False, "timeout", text, seconds)
    code = _end(process)
    if not said:
        lines = [line for line in text.splitlines() if line.strip()]
        why = lines[-1].removeprefix("sandbox: ")[:300] if lines else f"exit code {code}"
        return _NotBuilt(False, f"sandbox: could not be built: {why}", text, seconds)
    return Outcome(False, _reason(code, text), text, seconds)


def _reason(code: int, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    if code == 0:
        return "it ended before its last line"
    if code > 128 and code != 256:  # negative exit codes, modulo 256: a signal
        try:
            return f"killed by {signal.Signals(256 - code).name}"
        except ValueError:
            pass
    return lines[-1][:200] if lines else f"exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> int:
    """Stop the jail, which kills everything inside it; returns its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    return process.wait()
