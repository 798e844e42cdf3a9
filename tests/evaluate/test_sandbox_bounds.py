"""What a program may take in all, that nothing of it is left behind, and that ordinary programs notice none of this."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fastpower.evaluate.sandbox import run_python, sandbox

MEBI = 1 << 20
GREED = {
    "many files": """
for i in range(64):
    open(str(i), "wb").write(bytes(MEBI))
""",
    "files in folders": """
for i in range(64):
    os.makedirs(f"a/{i}")
    open(f"a/{i}/f", "wb").write(bytes(MEBI))
""",
    "deleted files kept open": """
kept = []
for i in range(64):
    kept.append(open("f", "wb", 0))
    os.unlink("f")
    kept[-1].write(bytes(MEBI))
""",
    "files without a name": """
import tempfile
kept = []
for i in range(64):
    kept.append(tempfile.TemporaryFile(dir=".", buffering=0))
    kept[-1].write(bytes(MEBI))
""",
    "empty files": """
for i in range(8000):
    open(str(i), "w").close()
""",
    "empty folders": """
for i in range(8000):
    os.mkdir(str(i))
""",
    "a folder that cannot be listed": """
os.mkdir("d", 0o300)
for i in range(64):
    open(f"d/{i}", "wb").write(bytes(MEBI))
""",
    "several places": """
for i in range(8):
    for place in (".", "/tmp", "/dev/shm"):
        open(f"{place}/{i}", "wb").write(bytes(MEBI // 2))
""",
    "several processes": """
for p in range(4):
    if os.fork() == 0:
        for i in range(16):
            open(f"{p}-{i}", "wb").write(bytes(MEBI))
        os._exit(0)
if any(os.wait()[1] for p in range(4)):
    raise OSError("a child was stopped")
""",
    "mappings of deleted files": """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for i in range(64):
    f = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(f, bytes(MEBI))
    libc.mmap(None, ctypes.c_size_t(4096), 1, 1, f, ctypes.c_long(0))
    os.unlink("f")
    os.close(f)
""",
}


@pytest.mark.parametrize("way", GREED)
def test_the_disk_is_bounded_in_all(level: str, way: str) -> None:
    program = f"import os, time\nMEBI = {MEBI}\n{GREED[way]}\ntime.sleep(2)  # the watch looks fifty times a second\n"
    outcome = run_python(program, disk=MEBI if "empty" in way else 8 * MEBI, level=level, timeout=20)
    assert not outcome.passed and re.match("OSError|PermissionError|FileNotFoundError", outcome.reason), outcome


CHILDREN = """
import mmap, os, time
MEBI = 1 << 20
for child in range({count}):
    if os.fork() == 0:
        {take}
        time.sleep(30)
        os._exit(0)
time.sleep(30)
"""
HOARDS = {
    "of their own": "kept = b'x' * (100 * MEBI)",
    "in shared mappings": "kept = mmap.mmap(-1, 100 * MEBI); [kept.write(b'x' * MEBI) for _ in range(100)]",
    "in steps": "kept = []\n        for i in range(25): kept.append(b'x' * (4 * MEBI)); time.sleep(0.002)",
    "in grandchildren": "os.fork(); kept = b'x' * (50 * MEBI)",
}


@pytest.mark.parametrize("take", HOARDS)
def test_memory_is_bounded_in_all(level: str, take: str) -> None:
    program = CHILDREN.format(count=10, take=HOARDS[take])
    outcome = run_python(program, memory=400 * MEBI, processes=40, level=level, timeout=20)
    assert outcome.reason == "MemoryError: its processes held more than the bound together", outcome
    assert outcome.seconds < 20


def test_pages_that_children_share_count_once(level: str) -> None:
    program = """
import os
kept = b"x" * (150 << 20)
for i in range(6):
    if os.fork() == 0:
        import time
        time.sleep(0.2)
        os._exit(0)
assert not any(os.wait()[1] for i in range(6))
"""
    outcome = run_python(program, memory=400 * MEBI, processes=40, level=level, timeout=20)
    assert outcome.passed, outcome


def test_a_program_may_write_what_it_is_given(level: str) -> None:
    program = f"import time\nfor i in range(6): open(str(i), 'wb').write(bytes({MEBI})); time.sleep(0.03)"
    assert run_python(program, disk=8 * MEBI, level=level).passed


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor i in range(60):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)",
        "import os\nos.makedirs('a/b/c')\nos.mkdir('a/b/closed', 0)\nos.mkdir('closed', 0)\nos.symlink('/usr', 'a/l')",
        "open('f' * 255, 'w').close()\nimport os\nos.mkfifo('pipe')\nos.symlink('nowhere', 'l')",
    ],
)
def test_whatever_a_program_builds_is_removed(
    level: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("/var/tmp") / f"fastpower-left-{os.getpid()}"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(folder))
    try:
        run_python(program, level=level)
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


ORDINARY = {
    "numpy": """
import numpy as np
assert (np.ones((64, 64)) @ np.ones((64, 64))).sum() == 64**3
""",
    "threads": """
import concurrent.futures, threading
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    assert sum(pool.map(abs, range(9))) == 36
""",
    "subprocess": """
import subprocess, sys
assert subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True).stdout == b"7\\n"
""",
    "multiprocessing": """
import multiprocessing
ours, theirs = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=theirs.send, args=(7,))
process.start()
assert ours.recv() == 7
process.join()
""",
    "tempfile": """
import os, tempfile
with tempfile.NamedTemporaryFile("w") as f, tempfile.TemporaryDirectory() as d, tempfile.TemporaryFile() as t:
    t.write(b"x")
    assert os.path.exists(f.name) and os.path.isdir(d)
""",
    "sqlite3": """
import sqlite3
connection = sqlite3.connect("x.db")
connection.execute("create table t(a)")
connection.execute("insert into t values(1)")
connection.commit()
assert connection.execute("select a from t").fetchone() == (1,)
""",
    "asyncio": """
import asyncio
async def f():
    await asyncio.sleep(0.01)
    return 7
assert asyncio.run(f()) == 7
""",
    "asyncio with a process": """
import asyncio, sys
async def f():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=-1)
    return (await process.communicate())[0]
assert asyncio.run(f()) == b"7\\n"
""",
    "json and decimal": """
import decimal, json
assert json.loads("[0.1]", parse_float=decimal.Decimal)[0] * 3 == decimal.Decimal("0.3")
""",
    "copying files": """
import os, shutil
open("a", "w").write("x")
shutil.copy("a", "b")
shutil.copy2("a", "c")
os.mkdir("d")
shutil.move("b", "d/b")
shutil.copytree("d", "e")
assert open("e/b").read() == "x"
shutil.rmtree("e")
""",
    "archives": """
import os, tarfile, zipfile
open("a", "w").write("x")
with zipfile.ZipFile("z", "w") as z:
    z.write("a")
with tarfile.open("t", "w") as t:
    t.add("a")
os.mkdir("o")
tarfile.open("t").extractall("o")
assert open("o/a").read() == zipfile.ZipFile("z").read("a").decode() == "x"
""",
    "pathlib": """
import pathlib
path = pathlib.Path("p")
path.touch()
path.touch()
path.rename("q").unlink()
""",
    "own priority and processors": """
import os
os.nice(1)
os.sched_setaffinity(0, os.sched_getaffinity(0))
""",
    "own limits": """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
""",
    "own signals": """
import os, signal
signal.signal(signal.SIGUSR1, lambda *a: None)
os.kill(os.getpid(), signal.SIGUSR1)
signal.raise_signal(signal.SIGUSR1)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0.01)
""",
    "memory maps": """
import mmap
m = mmap.mmap(-1, 1 << 20)
m[:3] = b"abc"
assert m[:3] == b"abc"
""",
    "maps of files": """
import mmap, os, time
with open("f", "wb+") as f:
    f.truncate(1 << 20)
    m = mmap.mmap(f.fileno(), 0)
os.unlink("f")
time.sleep(0.1)
m[:3] = b"abc"
""",
    "randomness and clocks": """
import os, secrets, time, uuid
secrets.token_hex()
uuid.uuid4()
time.sleep(0.001)
os.urandom(4)
""",
    "facts of the machine": """
import os, platform
assert os.cpu_count()
platform.uname()
open("/proc/self/status").read()
""",
    "text and input": """
import sys
assert sys.stdin.read() == "" and not sys.stdout.isatty()
print("é")
""",
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_an_ordinary_program_runs(level: str, kind: str) -> None:
    outcome = run_python(ORDINARY[kind], level=level, timeout=20)
    if kind == "numpy" and "No module named" in outcome.reason:
        pytest.skip("no NumPy for this Python")
    assert outcome.passed, outcome
