"""The inside of the sandbox: gives up every right it does not need, then runs one Python program.

Started as a script (``python -I -S jail.py``) by ``fastpower.evaluate.sandbox`` with a JSON order on standard input;
imports nothing of fastpower. Two processes: this one stays outside, waits, and on SIGTERM kills everything that the
program started; its child locks itself in and becomes the program.

Layers, in the order in which they are applied (level "namespaces" has all of them, "landlock" all but the first):

1. new mount, PID, network, IPC and UTS namespaces (and a user namespace where not root). The root is an empty file
   system holding the system's libraries and Python, read-only, and a small in-memory working folder. PID 1 is the
   program: when it ends, whatever it started ends.
2. resource limits: address space, processes, file size, CPU seconds, open files, no core dump
3. an unprivileged user of its own, where root, and an empty session keyring
4. seccomp (``filter.py``): no sockets, namespaces, keys, memory or messages outside an address space, nothing that
   reaches into other processes or the kernel; with Landlock alone no change of modes, owners, times and attributes
5. Landlock: reading system libraries and Python, writing the working folder, nothing else; no TCP, no signals out
6. a watch over what all processes hold in memory (``memory.py``); with Landlock alone, one over the working folder's
   size (``disk.py``)
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __name__ != "__main__":
    from fastpower.evaluate.sandbox import disk, memory
    from fastpower.evaluate.sandbox import filter as system_calls
else:  # a script, started without site-packages
    sys.path.append(os.path.dirname(__file__))
    import disk
    import filter as system_calls
    import memory

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SYS_MOUNT_SETATTR, SYS_LANDLOCK = 442, 444
_DEVICES = ("null", "zero", "full", "random", "urandom")
#: What Landlock alone lets a program read of /proc: nothing about other processes. Of itself, and of the machine:
_PROC_SELF = ("fd", "maps", "smaps", "stat", "statm", "status", "cmdline", "limits", "mountinfo", "mounts", "cgroup")
_PROC = ("cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems", "sys/vm/overcommit_memory")
_PROC_MASKED = ("keys", "key-users", "kcore", "kallsyms", "timer_list")

#: Runs the program and reports on descriptor 3: one byte when it starts, the pass word when its last line was reached.
RUNNER = """\
import os, sys
def run():
    word = sys.argv.pop().encode()
    with open("program.py", encoding="utf-8") as file:
        text = file.read()
    os.write(3, b"s")  # from here on whatever happens is the program's doing, its syntax included
    code = compile(text, "program.py", "exec")
    exec(code, {"__name__": "__main__", "__builtins__": __builtins__})
    sys.stdout.flush()
    os.write(3, word)
run()
"""

#: With Landlock alone modes and times cannot be set: copying a file leaves them out instead of failing.
TOLERANT = """\
import contextlib, functools, shutil
def tolerant(copy):
    @functools.wraps(copy)
    def copied(*args, **options):
        with contextlib.suppress(PermissionError):
            copy(*args, **options)
    return copied
shutil.copymode, shutil.copystat = tolerant(shutil.copymode), tolerant(shutil.copystat)
"""


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, *args: Any) -> int:
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return int(_libc.syscall(ctypes.c_long(number), *values))


def _prctl(option: int, value: int) -> None:
    args = [ctypes.c_ulong(v) for v in (value, 0, 0, 0)]
    _check(_libc.prctl(option, *args), f"prctl {option}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded = [text.encode() if text else None for text in (source, target, kind)]
    _check(_libc.mount(*encoded, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def _read_only(path: str, recursive: bool = True) -> None:
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    _check(_syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes)), f"seal {path}")


def _unshare() -> None:
    """New namespaces; a user namespace too where we are not root.

    Mounts come later, in the child: pivot_root moves every process of a mount namespace, and this one needs the outer
    /proc to find what it has to kill.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _check(_libc.unshare(flags | (CLONE_NEWUSER if uid else 0)), "unshare")
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _new_root(root: str, readable: list[str], disk: int) -> None:
    """Build the program's whole file system on ``root`` and make it ``/``; the working folder is ``/sandbox``."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare mounts")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID, "size=4m,mode=755")
    for name in ("tmp", "sandbox", "dev", "dev/shm", "proc"):
        os.mkdir(f"{root}/{name}", 0o755)
    # one file system behind the three, so that one bound holds for all
    _mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},nr_inodes={disk // 4096 + 64}")
    for name in ("sandbox", "dev/shm", "tmp"):
        place = f"{root}/tmp/{os.path.basename(name)}"
        os.mkdir(place)
        os.chmod(place, 0o777)
        _mount(place, f"{root}/{name}", None, MS_BIND)
    for path in readable:
        _bind(root, path)
        if not os.path.islink(path):
            _read_only(root + path)
    for name in _DEVICES:
        _bind(root, f"/dev/{name}")
        _read_only(f"{root}/dev/{name}")  # its times and attributes; the device can be written
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    try:
        _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    except OSError:  # refused where the outer /proc is partly masked; few programs need it
        pass
    else:
        for path in (f"{root}/proc/{name}" for name in _PROC_MASKED):
            if os.path.exists(path):
                _mount("/dev/null", path, None, MS_BIND)
    os.chdir(root)
    _check(_syscall(system_calls.number("pivot_root"), b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")
    _read_only("/", recursive=False)


def _bind(root: str, path: str) -> None:
    target = root + path
    if os.path.lexists(target):  # inside a folder that is already there
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, None, MS_BIND | MS_REC)


def _limit(order: dict[str, Any], processes: int) -> None:
    limits = {
        resource.RLIMIT_AS: order["memory"],
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: order["disk"],
        resource.RLIMIT_CPU: int(order["timeout"]) + 2,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _become_nobody(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _own_processes() -> int:
    """How many threads this user already runs: without a PID namespace the process limit counts them too."""
    count, uid = 0, os.geteuid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
    return count


def landlock_abi() -> int:
    """Version of the kernel's Landlock, 0 without."""
    return max(0, _syscall(SYS_LANDLOCK, None, 0, 1))


def _landlock(readable: list[str], writable: list[str], proc: list[str]) -> None:
    abi = landlock_abi()
    if not abi:
        return
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1  # file-system rights that this version knows
    read = 0b1101  # execute, read file, read folder
    on_files = every & (0b111 | 1 << 14 | 1 << 15)  # execute, write, read, truncate, ioctl: the rest are for folders
    fields = [every] + ([0b11] if abi >= 4 else []) + ([0b11] if abi >= 6 else [])  # files, TCP, signals and sockets
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _check(_syscall(SYS_LANDLOCK, attributes, len(attributes), 0), "landlock ruleset")
    rules = [(path, read) for path in readable] + [(path, every) for path in writable]
    rules += [(f"/dev/{name}", every) for name in _DEVICES] + [(path, read) for path in proc]
    for path, rights in rules:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):  # nothing is out of reach that a rule could grant
            continue
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= on_files
        _check(_syscall(SYS_LANDLOCK + 1, ruleset, 1, struct.pack("=Qi", rights & every, fd), 0), f"landlock {path}")
        os.close(fd)
    _check(_syscall(SYS_LANDLOCK + 2, ruleset, 0), "landlock restrict")
    os.close(ruleset)


def _enter(order: dict[str, Any]) -> None:
    """Lock this process in and become the program. Never returns."""
    work, readable = order["work"], order["readable"]
    if order["level"] == "namespaces":
        _new_root(work, readable, order["disk"])
        work = "/sandbox"
    os.chdir(work)
    with open("program.py", "w", encoding="utf-8") as file:
        file.write(order["program"])
    root = os.geteuid() == 0
    system_calls.new_session_keyring()
    if root and order["level"] == "landlock":
        for path in (work, "program.py"):
            os.chown(path, order["uid"], order["uid"])
    inside = order["level"] == "namespaces" or root  # a process count of its own
    _limit(order, order["processes"] + (0 if inside else _own_processes()))
    if root:
        _become_nobody(order["uid"])
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    system_calls.install(order["level"])
    if order["level"] == "namespaces":
        _landlock(readable, [work, "/tmp", "/dev/shm"], ["/proc"])
    else:
        proc = [f"{os.getpid()}/{name}" for name in _PROC_SELF] + list(_PROC)
        _landlock(readable, [work], [f"/proc/{name}" for name in proc])
    environment = {"PATH": "/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", **order["environment"]}
    os.dup2(order["verdict"], 3)
    python = order["python"]
    runner = RUNNER if order["level"] == "namespaces" else TOLERANT + RUNNER
    os.execve(python, [python, "-I", "-X", "utf8", "-c", runner, order["word"]], environment)


def _descendants() -> list[int]:
    found, queue = [], [os.getpid()]
    while queue:
        pid = queue.pop()
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children = [int(child) for child in file.read().split()]
                found += children
                queue += children
        except OSError:
            continue
    return found


def _kill_descendants() -> None:
    """Kill all of them, orphans included: this process is their reaper. Returns when none is left."""
    while True:
        for wanted in (signal.SIGSTOP, signal.SIGKILL):  # stopped processes fork no more
            for pid in _descendants():
                try:
                    os.kill(pid, wanted)
                except ProcessLookupError:
                    continue
        try:
            while os.waitpid(-1, 0)[0]:
                continue
        except ChildProcessError:
            if not _descendants():
                return


def _watch_disk(order: dict[str, Any]) -> None:
    def exceeded() -> None:
        os.write(order["verdict"], b"d")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    disk.watch(order["work"], order["disk"], order["uid"] if os.geteuid() == 0 else None, _descendants, exceeded)


def _wait(child: int, order: dict[str, Any]) -> int:
    """The program's status when it has ended; it is ended where all its processes take more memory than allowed.

    No thread does that: none can be started by a process whose children live in another PID namespace.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    user = order["uid"] if os.geteuid() == 0 else None
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if memory.held(_descendants(), order["memory"], user) > order["memory"]:
            os.write(order["verdict"], b"m")
            os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait({signal.SIGCHLD}, memory.PAUSE)
    return ended[1]


def main() -> None:
    order = json.load(sys.stdin)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a caller that is killed takes the program with it
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the first to go when memory runs out

    def stop(signum: int, frame: FrameType | None) -> None:
        _kill_descendants()
        os._exit(124)

    signal.signal(signal.SIGTERM, stop)
    if os.getppid() == 1 and order["parent"] != 1:  # the caller died before the line above could notice
        return
    if order["level"] == "namespaces":
        _unshare()
    started, unstarted = os.pipe()  # the second end is closed when the child becomes the program
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            _enter(order)
        except BaseException as error:
            os.write(2, f"sandbox: {error}\n".encode())
            os._exit(125)
    os.close(unstarted)
    os.read(started, 1)
    if order["level"] == "landlock":
        _watch_disk(order)
    status = _wait(child, order)
    _kill_descendants()
    os._exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main()
