"""Programs that try to get out, or to leave something behind, at both levels.

Each attack is a few lines that end without an error where it works. All of them run in one program per level, and, as
a control of the attacks themselves, once more in a plain process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from fastpower.evaluate.sandbox import filter as system_calls
from fastpower.evaluate.sandbox import run_python

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no system call filter for this machine"
)
KEY = f"fastpower-test-{os.getpid()}"
VICTIM = Path("/var/tmp") / f"fastpower-victim-{os.getpid()}"
LEVELS = ["namespaces", "landlock"]

PRELUDE = """
import ctypes, fcntl, json, mmap, os, resource, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    values += [ctypes.c_long(0)] * (6 - len(values))
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *values)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result
def child(flags, name="clone", *args):
    pid = call(name, *args or [flags | signal.SIGCHLD])
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
def forked(attack):
    pid = os.fork()
    if pid == 0:
        try:
            attack()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(code, "in the child")
def ipc(name, *args):
    created = call(name + "get", 0, *args)
    call(name + "ctl", created, 0)
"""

ATTACKS = {
    "key of the session": "call('keyctl', 10, -3, b'user', KEY.encode(), 0)",
    "key requested by name": "call('request_key', b'user', KEY.encode(), None, 0)",
    "key left behind": "call('add_key', b'user', KEY.encode() + b'-new', b'x', 1, -3)",
    "keys listed": "assert KEY in open('/proc/keys').read()",
    "user namespace by unshare": "forked(lambda: call('unshare', 0x10000000))",
    "user namespace by clone": "child(0x10000000)",
    "network namespace by clone": "child(0x10000000 | 0x40000000)",
    "mount namespace by clone": "child(0x10000000 | 0x00020000)",
    "user namespace by clone3": (
        "child(0, 'clone3', struct.pack('11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)"
    ),
    "memory in a memfd": "os.ftruncate(call('memfd_create', b'm', 0), 8 << 30)",
    "memory in a SysV segment": "ipc('shm', 8 << 20, 0o1600)",
    "a semaphore left behind": "ipc('sem', 1, 0o1600)",
    "a message queue left behind": "ipc('msg', 0o1600)",
    "a POSIX queue left behind": "call('mq_open', KEY.encode(), 0o102, 0o600, None); call('mq_unlink', KEY.encode())",
    "limits of others": "resource.prlimit(PID, resource.RLIMIT_NOFILE)",
    "processors of others": "os.sched_setaffinity(PID, os.sched_getaffinity(0))",
    "priority of others": "os.setpriority(os.PRIO_PROCESS, PID, 1)",
    "priority of a user": "os.setpriority(os.PRIO_USER, 54321, 1)",
    "scheduler of others": "os.sched_setscheduler(PID, os.SCHED_BATCH, os.sched_param(0))",
    "input and output of others": "call('ioprio_set', 1, PID, 3 << 13)",
    "a signal by kill": "os.kill(PID, 0); os.kill(PID, signal.SIGCONT)",
    "a signal by tkill": "call('tkill', PID, signal.SIGCONT)",
    "a signal by tgkill": "call('tgkill', PID, PID, signal.SIGCONT)",
    "a signal by queue": (
        "information = struct.pack('iii4xii', 0, 0, -1, os.getpid(), os.getuid()) + bytes(104)\n"
        "call('rt_sigqueueinfo', PID, signal.SIGCONT, information)"
    ),
    "a signal by descriptor": "signal.pidfd_send_signal(os.pidfd_open(PID), signal.SIGCONT)",
    "a descriptor of others": "call('pidfd_getfd', os.pidfd_open(PID), 0, 0)",
    "tracing": "call('ptrace', 16, PID); call('ptrace', 17, PID)",
    "memory of others": "open(f'/proc/{PID}/mem', 'rb')",
    "environment of others": "assert KEY in open(f'/proc/{PID}/environ').read()",
    "command line of others": "assert 'sleep' in open(f'/proc/{PID}/cmdline').read()",
    "files of others": "os.listdir(f'/proc/{PID}/fd')",
    "comparing with others": "call('kcmp', PID, PID, 0)",
    "network tables": "open('/proc/net/tcp').read(); assert len(open('/proc/net/dev').readlines()) > 3",
    "reading": "open(VICTIM).read()",
    "writing": "open(VICTIM, 'a')",
    "truncating": "os.truncate(VICTIM, 8)",
    "renaming": "os.rename(VICTIM, VICTIM + 'x'); os.rename(VICTIM + 'x', VICTIM)",
    "linking": "os.link(VICTIM, VICTIM + 'x'); os.unlink(VICTIM + 'x')",
    "creating": "open(VICTIM + 'x', 'w'); os.unlink(VICTIM + 'x')",
    "modes": "os.chmod(VICTIM, 0o666)",
    "modes by descriptor": "os.fchmod(os.open(sys.executable, os.O_RDONLY), os.stat(sys.executable).st_mode)",
    "owners": "os.chown(VICTIM, os.getuid(), os.getgid())",
    "times": "os.utime(VICTIM)",
    "times of a device": "os.utime('/dev/null')",
    "attributes": "os.setxattr(VICTIM, 'user.x', b'x'); os.removexattr(VICTIM, 'user.x')",
    "flags": "fcntl.ioctl(os.open(sys.executable, os.O_RDONLY), 0x40086602, struct.pack('q', 0x80000))",
    "leases": "fcntl.fcntl(os.open(sys.executable, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "TCP": "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "Unix sockets": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "a pair that can send to others": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "io_uring": "call('io_uring_setup', 1, bytearray(120) and ctypes.create_string_buffer(120))",
    "performance events": "call('perf_event_open', struct.pack('IIQ', 1, 112, 0) + bytes(96), 0, -1, -1, 0)",
    "page faults": "call('userfaultfd', 1)",
    "personality": "call('personality', 0x0040000)",
    "asynchronous input and output": "call('io_setup', 8, ctypes.pointer(ctypes.c_ulong(0)))",
    "a newer kernel's calls": "call('newer')",
}
#: Work only as root, on some kernels or file systems, or not at all: no control.
UNSURE = {
    *("key requested by name", "key left behind", "a POSIX queue left behind", "network tables", "leases", "flags"),
    *("io_uring", "performance events", "page faults", "a newer kernel's calls", "attributes", "tracing"),
    *("priority of a user", "comparing with others", "modes by descriptor", "times of a device", "owners"),
}
#: What refusing looks like: never a missing argument or a misspelt name. ESRCH: a PID namespace has no such process.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EROFS, errno.ESRCH, errno.ENOENT),
    *(errno.ENOTTY,),  # ioctl
}


def _numbers() -> dict[str, int]:
    machine = platform.machine()
    more = {"x86_64": ("tkill", 200, "tgkill", 234, "rt_sigqueueinfo", 129)}.get(
        machine, ("tkill", 130, "tgkill", 131, "rt_sigqueueinfo", 138)
    )
    table = {**system_calls.denied("landlock", machine), **system_calls.judged(machine), "newer": 5000}
    return {**table, **dict(zip(more[::2], more[1::2], strict=True))}  # type: ignore[call-overload]


def _preamble(pid: int) -> str:
    return f"NUMBERS = {_numbers()}\nKEY = {KEY!r}\nPID = {pid}\nVICTIM = {str(VICTIM)!r}\n{PRELUDE}"


def _attempts(pid: int) -> str:
    return (
        f"{_preamble(pid)}\nresults = {{}}\nfor name, attack in {ATTACKS!r}.items():\n"
        "    try:\n        exec(attack)\n        results[name] = 'done'\n"
        "    except OSError as error: results[name] = error.errno\n"
        "    except AssertionError: results[name] = 'nothing found'\n"
        "print(json.dumps(results))"
    )


def _key(name: str, *args: object) -> int:
    number = system_calls.denied("landlock", platform.machine())[name]
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return int(ctypes.CDLL(None).syscall(ctypes.c_long(number), *values))


@pytest.fixture(scope="module")
def victim() -> Iterator[int]:
    """A process, a file that everybody may write, and a key of this session."""
    VICTIM.write_text("precious")
    VICTIM.chmod(0o666)
    key = _key("add_key", b"user", KEY.encode(), b"secret", 6, -3)
    process = subprocess.Popen(["sleep", "600"], env={"KEY": KEY}, stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        assert process.poll() is None, "an attack killed the victim"
        process.kill()
        process.wait()
        if key > 0:
            _key("keyctl", 9, key, -3)  # unlink
        VICTIM.unlink()


@lru_cache(maxsize=4)
def _inside(level: str, pid: int) -> dict[str, object]:
    outcome = run_python(_attempts(pid), level=level, timeout=20)
    assert outcome.passed, outcome
    return dict(json.loads(outcome.output))


@lru_cache(maxsize=1)
def _plain(pid: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _attempts(pid)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(level: str, victim: int, attack: str) -> None:
    result = _inside(level, victim)[attack]
    assert result == "nothing found" or result in REFUSED, result
    assert VICTIM.read_text() == "precious"


def test_new_namespaces_are_refused_by_the_filter_and_clone3_is_unknown(level: str, victim: int) -> None:
    results = _inside(level, victim)
    assert {results[name] for name in ATTACKS if name.endswith("by clone")} == {errno.EACCES}
    assert results["user namespace by clone3"] == results["a newer kernel's calls"] == errno.ENOSYS


@pytest.mark.skipif(os.geteuid() != 0, reason="some of the attacks need root where nothing contains them")
def test_the_attacks_work_where_nothing_contains_them(victim: int) -> None:
    results = _plain(victim)
    failed = {name: result for name, result in results.items() if result != "done" and name not in UNSURE}
    assert len(failed) <= 5, failed  # a container around the tests may refuse a few


@lru_cache(maxsize=4)
def _refusals(level: str) -> dict[str, int]:
    names = list(system_calls.denied(level, platform.machine()))
    outcome = run_python(
        f"{_preamble(0)}\nresults = {{}}\nfor name in {names!r}:\n"
        "    try: results[name] = call(name, *[-1] * 6)\n"
        "    except OSError as error: results[name] = -error.errno\n"
        "print(json.dumps(results))",
        level=level,
        timeout=20,
    )
    assert outcome.passed, outcome
    return dict(json.loads(outcome.output))


@pytest.mark.parametrize("name", system_calls.denied("landlock", "x86_64"))
def test_every_refused_call_is_refused_by_the_filter(level: str, name: str) -> None:
    table = system_calls.denied(level, platform.machine())
    if name not in table:
        pytest.skip("allowed at this level, or unknown to this machine")
    assert _refusals(level)[name] == -errno.EACCES


@pytest.mark.parametrize("machine, header", [("x86_64", "asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")])
def test_the_filter_has_the_kernel_headers_numbers(machine: str, header: str) -> None:
    places = [Path("/usr/include") / header, Path("/usr/include/x86_64-linux-gnu") / header]
    found = [place for place in places if place.exists()]
    if not found:
        pytest.skip("no kernel headers here")
    defined = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", found[0].read_text()))
    table = {**system_calls.denied("landlock", machine), **system_calls.judged(machine)}
    wrong = {name: number for name, number in table.items() if int(defined.get(name, number)) != number}
    assert wrong == {}
    assert len(set(table.values())) == len(table)


@pytest.mark.parametrize("level_name", LEVELS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filters_jumps_stay_inside_and_it_ends_with_a_verdict(level_name: str, machine: str) -> None:
    program = system_calls.assemble(level_name, machine)
    assert len(program) <= 4096
    for position, (operation, yes, no, _) in enumerate(program):
        if operation & 7 == 5:
            assert position + 1 + max(yes, no) < len(program) and max(yes, no) < 256
    assert program[-1][0] == 6
