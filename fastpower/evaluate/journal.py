"""Files that lose nothing: lines that are on disk whole or not at all, and texts replaced in one step."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from fastpower.errors import NotWritten


class Journal:
    """JSON lines, appended one at a time; each is on disk when ``append`` returns.

    Opening removes a last line without its newline: whoever wrote it died meanwhile. A write that fails halfway (a full
    disk, a device that errs, a signal) is taken back, so that the next line does not stick to half of another; where
    not even that works, it is done before the next line, or when the file is opened again. One writer at a time: the
    caller holds a lock.

    Args:
        path: The file; made if it is not there.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._size = _whole(self._fd)
            self._torn = self._size != os.fstat(self._fd).st_size
            if self._torn:
                self._cut()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            NotWritten: The disk did not take it; the file holds the lines before it.
        """
        line = (line_of(row) + "\n").encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape
        try:
            if self._torn:
                self._cut()
            self._torn = True
            left = memoryview(line)
            while left:
                written = os.write(self._fd, left)
                if written == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left = left[written:]
            os.fsync(self._fd)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._cut()
            if isinstance(error, OSError):
                raise not_written(self.path, error) from error
            raise
        self._size += len(line)
        self._torn = False

    def _cut(self) -> None:
        os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)
        self._torn = False

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def replace_text(file: Path, text: str) -> None:
    """Make ``text`` the content of ``file`` in one step: whatever happens it holds the old text or the new, whole.

    Raises:
        NotWritten: The disk did not take it; the file is as it was.
    """
    temporary = file.with_name(f".{file.name}.new")
    try:
        try:
            with temporary.open("wb") as out:
                out.write(text.encode("utf-8", "backslashreplace"))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_written(file, error) from error


def not_written(file: Path, error: OSError) -> NotWritten:
    """The error for a file that the disk did not take, with what to do."""
    try:
        free = f"; {shutil.disk_usage(file.parent).free / 2**20:.1f} MiB are free there"
    except OSError:
        free = ""
    return NotWritten(
        f"{str(file)!r} could not be written ({error.strerror or error}{free}). What was finished before is safe: make "
        "room or mend the disk, and the same command goes on from there"
    )


def line_of(row: Mapping[str, Any]) -> str:
    """``row`` as JSON on one line, keys sorted: equal rows are equal lines."""
    return json.dumps(plain(row), ensure_ascii=False, sort_keys=True, allow_nan=False)


def plain(value: Any) -> Any:
    """JSON-able: numpy scalars and arrays become Python's, tuples lists, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def _whole(fd: int) -> int:
    """Bytes up to and with the last newline."""
    end, block = os.fstat(fd).st_size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
