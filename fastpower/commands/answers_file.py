"""A file of answers that grows as they finish, and that a killed command goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fastpower.evaluate.journal import Journal, replace_text


class AnswersFile:
    """JSON lines, one an answer, each on disk before the next is begun to be written.

    Beside ``FILE`` lies ``FILE.settings`` with what decided the answers: the same command goes on where it stopped,
    another one is refused. A last line that a kill cut in half is removed, and drawn again.

    Args:
        path: The file; made if it is not there.
        settings: What decides an answer, JSON-able.

    Raises:
        ValueError: The file holds answers of other settings, or something else; another process writes it.
        OSError: It cannot be written (NotWritten: the disk is full).
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(f"--out {str(path)!r} is being written by another process") from None
        try:
            self._agree(Path(f"{self.path}.settings"), settings)
            self.done = self._read()
            self._file = Journal(self.path)
        except BaseException:
            self._lock.release()
            raise

    def append(self, record: dict[str, Any]) -> None:
        """Write one answer.

        Raises:
            NotWritten: The disk did not take it; nothing of it stays in the file.
        """
        self._file.append(record)
        self.done.add(str(record["id"]))

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is ours: later it might be another's
        self._lock.release()

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _agree(self, file: Path, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        if file.is_file():
            try:
                known = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                known = None
            if not isinstance(known, dict):
                raise ValueError(
                    f"{str(file)!r} is damaged: remove it together with {str(self.path)!r}, or give another --out"
                )
            other = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
            if other:
                name = other[0]
                raise ValueError(
                    f"--out {str(self.path)!r} holds answers with {name} = {known.get(name)!r}, not "
                    f"{settings.get(name)!r}: give the same settings to go on, or another file"
                )
            return
        if self.path.is_file() and self.path.stat().st_size:
            raise ValueError(f"--out {str(self.path)!r} is there already and was not written by this command")
        replace_text(file, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")

    def _read(self) -> set[str]:
        """Ids of the answers that are there; half a line at the end is cut off."""
        done: set[str] = set()
        if not self.path.is_file():
            return done
        good = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    done.add(str(json.loads(line)["id"]))
                    whole = line.endswith(b"\n")
                except (ValueError, KeyError, TypeError):
                    whole = False
                if not whole:
                    if lines.read(1):
                        raise ValueError(f"{str(self.path)!r}, line {number} is no answer: mend or remove it")
                    break
                good += len(line)
        if good < self.path.stat().st_size:
            os.truncate(self.path, good)
        return done
