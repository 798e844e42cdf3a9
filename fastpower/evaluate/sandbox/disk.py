"""The bound on what a program writes at the Landlock level, where it has no small file system of its own.

A thread of the jail adds up the working folder's files, and those that were deleted but are still held, fifty times a
second. A program can exceed its bound by what it writes between two looks. Run by ``jail.py``, which reads this file by
its path: imports nothing of fastpower.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import threading
import time
from collections.abc import Callable

_PAUSE = 0.02  #: seconds between two looks
_LEAST = 4096  #: bytes that a file counts at least, so that empty ones end, too


class Usage:
    """What a program holds on disk.

    ``hidden`` names what could not be measured: folders that cannot be listed, processes that cannot be looked into,
    deleted files of which only a mapping is left. A race explains that once, so only what is hidden twice counts.
    """

    def __init__(self, work: str, limit: int) -> None:
        self._work = work
        self._most = limit // _LEAST + 1  # files, above which there is no need to count on
        self.hidden: set[str] = set()

    def look(self, pids: list[int]) -> tuple[int, bool]:
        """Bytes in use now, and whether something was hidden in this look and the last."""
        before, self.hidden = self.hidden, set()
        sizes = self._listed()
        mapped = {inode for pid in pids for inode in self._mapped(pid)}
        for pid in pids:
            sizes.update(self._held(pid))
        inodes = {inode for _, inode in sizes}
        self.hidden |= {f"inode {inode}" for inode in mapped - inodes}
        return sum(sizes.values()), bool(before & self.hidden)

    def _listed(self) -> dict[tuple[int, int], int]:
        sizes: dict[tuple[int, int], int] = {}
        folders = [self._work]
        while folders and len(sizes) <= self._most:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            sizes[status.st_dev, status.st_ino] = max(_LEAST, status.st_blocks * 512)
                            if stat.S_ISDIR(status.st_mode):
                                folders.append(entry.path)
            except FileNotFoundError:
                continue
            except OSError:  # not listable, or a path too long
                self.hidden.add(folder)
        return sizes

    def _held(self, pid: int) -> dict[tuple[int, int], int]:
        """Deleted files that a process has open, in any of its threads: they may have tables of their own."""
        sizes = {}
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                for name in os.listdir(f"/proc/{pid}/task/{task}/fd"):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(f"/proc/{pid}/task/{task}/fd/{name}")
                        if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                            sizes[status.st_dev, status.st_ino] = max(_LEAST, status.st_blocks * 512)
        except (FileNotFoundError, ProcessLookupError):
            pass
        except OSError:
            self.hidden.add(f"process {pid}")
        return sizes

    def _mapped(self, pid: int) -> list[int]:
        try:
            with open(f"/proc/{pid}/maps", errors="replace") as file:
                rows = [line.split(None, 5) for line in file if line.rstrip("\n").endswith(" (deleted)")]
        except (FileNotFoundError, ProcessLookupError):
            return []
        except OSError:
            self.hidden.add(f"process {pid}")
            return []
        return [int(row[4]) for row in rows if len(row) == 6 and row[5].startswith(self._work + "/")]


def watch(work: str, limit: int, user: int | None, pids: Callable[[], list[int]], exceeded: Callable[[], None]) -> None:
    """Start a thread that calls ``exceeded`` once when the programs ``pids()`` hold more than ``limit`` bytes.

    Args:
        work: The program's folder.
        limit: Bytes.
        user: The program's user where it is not ours. The thread takes over its file-system identity: without
            CAP_SYS_PTRACE, as in most containers, root may not look into other users' processes.
        pids: The programs now.
        exceeded: What to do then.
    """

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the main thread answers it
        if user is not None:
            libc = ctypes.CDLL(None)  # both change the calling thread only
            libc.setfsgid(user)
            libc.setfsuid(user)
        usage = Usage(work, limit)
        while True:
            size, hidden = usage.look(pids())
            if size > limit or hidden:
                exceeded()
                return
            time.sleep(_PAUSE)

    threading.Thread(target=run, daemon=True).start()
