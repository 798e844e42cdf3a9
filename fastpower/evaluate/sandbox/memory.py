"""The bound on what all processes of a program hold in memory together.

``RLIMIT_AS`` bounds each of them alone. The jail adds up what they hold, fifty times a second; control
groups would be exact, but are rarely delegated to whoever runs this. A program can exceed its bound by what it touches
between two looks. Run by ``jail.py``, which reads this file by its path: imports nothing of fastpower.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator

PAUSE = 0.02  #: seconds between two looks
_libc = ctypes.CDLL(None)


def held(pids: Iterable[int], limit: int, user: int | None) -> int:
    """Bytes that processes hold together: pages of their own, segments and what is swapped out.

    A page that several share since a fork is first counted once for each of them, which is quick; only a sum above
    ``limit`` is counted again, with each page once.

    Args:
        pids: The processes.
        limit: Bytes.
        user: Theirs, where it is not ours: without CAP_SYS_PTRACE, as in most containers, root may not look into other
            users' processes, and this thread takes over their file-system identity for a moment.
    """
    pids = list(pids)
    quick = sum(_fields(f"/proc/{pid}/status", ("RssAnon", "RssShmem", "VmSwap")) or 0 for pid in pids)
    if quick <= limit:
        return quick
    total = 0
    for pid in pids:
        with _identity(user):
            exact = _fields(f"/proc/{pid}/smaps_rollup", ("Pss_Anon", "Pss_Shmem", "SwapPss"))
        if exact is None:  # gone, or not to be looked into
            exact = _fields(f"/proc/{pid}/status", ("RssAnon", "RssShmem", "VmSwap")) or 0
        total += exact
    return total


@contextlib.contextmanager
def _identity(user: int | None) -> Iterator[None]:
    if user is None:
        yield
        return
    try:
        _libc.setfsgid(user)
        _libc.setfsuid(user)
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


def _fields(path: str, names: tuple[str, ...]) -> int | None:
    """Sum of the fields, given in kB, in bytes; None if the file cannot be read or has none of them."""
    try:
        with open(path, errors="replace") as file:
            found = [int(line.split()[1]) << 10 for line in file if line.partition(":")[0] in names]
    except (OSError, IndexError, ValueError):
        return None
    return sum(found) if found else None
