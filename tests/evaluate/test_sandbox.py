"""What a program does to itself, its files, its memory and the network stays inside, and the next program runs."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fastpower.evaluate.sandbox import Outcome, SandboxUnavailable, containment, run_python, sandbox

SLEEP = "import time; time.sleep(60)"


def _alive(marker: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if marker in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_program_that_reaches_its_last_line_passes(level: str) -> None:
    program = "import json, math, pathlib\npathlib.Path('f').write_text('7')\nassert open('f').read() == '7'\nprint(3)"
    outcome = run_python(program, level=level)
    assert outcome.passed and outcome.reason == "" and outcome.output == "3\n"


@pytest.mark.parametrize(
    "program, reason",
    [
        ("assert 1 == 2", "AssertionError"),
        ("raise SystemExit(0)", "it ended before its last line"),
        ("import os; os._exit(0)", "it ended before its last line"),
        ("this is not correct python", "SyntaxError: invalid syntax"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
    ],
)
def test_a_program_that_fails_or_leaves_early_does_not_pass(level: str, program: str, reason: str) -> None:
    outcome = run_python(program, level=level)
    assert not outcome.passed and outcome.reason == reason


def test_an_infinite_loop_ends_at_its_time_limit(level: str) -> None:
    began = time.monotonic()
    outcome = run_python("while True: pass", timeout=0.5, level=level)
    assert (outcome.passed, outcome.reason) == (False, "timeout")
    assert time.monotonic() - began < 8


def test_a_fork_bomb_is_bounded_and_leaves_nothing_behind(level: str) -> None:
    marker = f"bomb{os.getpid()}x{level}"
    program = (
        f"import os, sys, time\n"
        f"children = 0\n"
        f"while children < 1000:\n"
        f"    try: pid = os.fork()\n"
        f"    except OSError: break\n"
        f"    if pid == 0: os.execv(sys.executable, [sys.executable, '-c', {SLEEP!r}, '{marker}'])\n"
        f"    children += 1\n"
        f"print('children', children, flush=True)\n"
        f"while True:\n"
        f"    try: os.fork()\n"
        f"    except OSError: pass\n"
    )
    outcome = run_python(program, timeout=1.0, level=level)
    assert (outcome.passed, outcome.reason) == (False, "timeout")
    counts = [int(line.split()[1]) for line in outcome.output.splitlines() if line.startswith("children")]
    assert counts and all(0 < count <= 8 for count in counts)
    assert _alive(marker) == []


def test_a_daemon_does_not_outlive_its_program(level: str) -> None:
    marker = f"daemon{os.getpid()}x{level}"
    program = (
        "import os, sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', {SLEEP!r}, '{marker}'])\n"
        "import time; time.sleep(0.3)\n"
    )
    assert run_python(program, level=level).passed
    assert _alive(marker) == []


def test_a_ten_gigabyte_allocation_fails_inside(level: str) -> None:
    outcome = run_python("x = bytearray(10 << 30)", level=level)
    assert not outcome.passed and outcome.reason.startswith("MemoryError")


def test_files_outside_the_working_folder_cannot_be_deleted_changed_or_read(level: str, tmp_path: Path) -> None:
    victim = Path("/var/tmp") / f"fastpower-victim-{os.getpid()}"
    victim.write_text("precious")
    victim.chmod(0o666)
    try:
        for action in ("os.remove(p)", "open(p, 'w')", "open(p).read()", "os.rename(p, p + 'x')"):
            outcome = run_python(f"import os\np = {str(victim)!r}\n{action}", level=level)
            assert not outcome.passed and outcome.reason.startswith(("FileNotFoundError", "PermissionError")), action
        deletion = run_python("import shutil\nshutil.rmtree('/usr')", level=level)
        assert not deletion.passed
        assert victim.read_text() == "precious"
    finally:
        victim.unlink()


def test_the_network_is_out_of_reach(level: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):  # the control: it is reachable from here
            pass
        tcp = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)", level=level)
        udp = run_python("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)", level=level)
    assert not tcp.passed and "Error" in tcp.reason
    assert not udp.passed and udp.reason.startswith("PermissionError")


def test_a_program_cannot_signal_its_parent(level: str) -> None:
    outcome = run_python("import os\nos.kill(os.getppid() or 1, 9)\nopen('/proc/1/mem', 'wb')", level=level)
    assert not outcome.passed
    assert run_python("pass", level=level).passed


def test_endless_output_and_endless_files_are_bounded(level: str) -> None:
    talker = run_python("while True: print('x' * 1000)", timeout=0.5, level=level)
    assert talker.reason == "timeout" and len(talker.output) <= 64 << 10
    writer = run_python("open('big', 'wb').write(b'0' * (8 << 20))", disk=1 << 20, level=level)
    assert not writer.passed and writer.reason.startswith("OSError")


def test_the_working_folder_is_thrown_away(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lies where only its user may go
        os.chmod(folder, 0o755)
        monkeypatch.setattr(sandbox.tempfile, "tempdir", folder)
        assert run_python("open('left', 'w').write('x')", level=level).passed
        assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "program",
    [
        "print('sandbox: unshare failed'); raise SystemExit(1)",
        "import os; print('sandbox: no', flush=True); os._exit(125)",
        "import os; os._exit(125)",
        "import os; os.write(2, b'sandbox: \\xff\\xfe'); os._exit(125)",
        "raise Exception('\\ud800')",
        "print('\ud800')",
        "def f(:",
        "x = '\x00'",
        "(" * 5000,
    ],
)
def test_whatever_a_program_says_or_does_is_its_own_failure(level: str, program: str) -> None:
    outcome = run_python(program, level=level)
    assert not outcome.passed and outcome.reason
    json.dumps(outcome._asdict()).encode()


def test_programs_run_at_once_from_several_threads() -> None:
    containment()
    outcomes: list[Outcome] = []
    programs = [f"import time; time.sleep(0.1); assert {i} % 2 == 0" for i in range(6)]
    threads = [threading.Thread(target=lambda p=p: outcomes.append(run_python(p))) for p in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(o.passed for o in outcomes) == 3 and len(outcomes) == 6


def test_nothing_runs_where_nothing_can_be_contained(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = sandbox._NotBuilt(False, "sandbox: unshare: Operation not permitted", "", 0.0)
    monkeypatch.setattr(sandbox, "_run", lambda *a: refused)
    monkeypatch.setattr(sandbox, "_landlock_lacks", lambda: "not in this kernel")
    containment.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="Operation not permitted; landlock: not in this kernel"):
            run_python("pass")
    finally:
        containment.cache_clear()
