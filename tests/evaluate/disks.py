"""Disks that fill up and fail, without being root."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files can have ``size`` bytes: the kernel itself writes short, and then refuses, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FaultyOs:
    """The module ``os``, whose writes are short and whose calls fail at random: ENOSPC, EIO, EDQUOT, EINTR's kind.

    A failing write may have written something first. ``calls``: those that may fail; ``faults`` counts them.
    """

    def __init__(self, seed: int, share: float, calls: tuple[str, ...] = ("write", "fsync", "ftruncate")) -> None:
        self._random, self._share, self._calls, self.faults = random.Random(seed), share, calls, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _fails(self, call: str) -> bool:
        fails = call in self._calls and self._random.random() < self._share
        self.faults += fails
        return fails

    def _error(self) -> OSError:
        code = self._random.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT])
        return OSError(code, os.strerror(code))

    def write(self, fd: int, data: Any) -> int:
        part = self._random.randrange(len(data) + 1)
        if self._fails("write"):
            os.write(fd, bytes(data[:part]))
            if self._random.random() < 0.1:
                raise KeyboardInterrupt
            raise self._error()
        return os.write(fd, data if self._random.random() < 0.5 else bytes(data[:part]) or data)

    def fsync(self, fd: int) -> None:
        if self._fails("fsync"):
            raise self._error()
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        if self._fails("ftruncate"):
            raise self._error()
        os.ftruncate(fd, size)
