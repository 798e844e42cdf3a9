"""A run folder: what was asked, and every record as soon as it is finished.

    RUN/config.json     settings, versions, seed
    RUN/records.jsonl   one record a line, appended and synced as it finishes; sorted into plan order by ``finalise``
    RUN/timings.jsonl   what depends on the machine and its load: seconds, forwards (one line per record)

Timings are kept out of the records so that a record depends on the settings alone: a run that was killed and resumed
ends with the same bytes in ``records.jsonl`` as one that was not (on a decoder with batch-invariant logits).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fastpower import __version__
from fastpower.errors import FastpowerError
from fastpower.evaluate.rows import parse_lines

#: Record fields that depend on the machine, its load or on how a run was batched.
VOLATILE = ("seconds", "forwards", "prefill_tokens", "savings", "finished")
FORMAT = 1


class RunError(FastpowerError, ValueError):
    """A run folder that cannot be used as asked: not writable, in use, or made with other settings."""


def check_writable(path: str | Path) -> None:
    """Create the folder and a file in it, now, rather than fail after hours of compute."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-"):
            pass
    except OSError as error:
        problem = f"output folder {str(path)!r} cannot be written ({error.strerror}); choose another --out"
        raise RunError(problem) from None


def versions() -> dict[str, str]:
    """Versions of what a record depends on."""
    found = {"fastpower": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "transformers", "numpy", "triton", "math-verify", "reasoning-gym"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class Run:
    """A run folder opened for appending. Use as a context manager.

    Opening repairs what a kill may have left: a last line without its newline is removed. ``done`` holds the ids of the
    records that are safely on disk.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any]) -> None:
        """Open ``path``, creating it if needed. ``config`` must equal the folder's own if it has one.

        Raises RunError: not writable, another process is writing, another config (naming what differs); BadLine for a
        damaged line that is not the last.
        """
        self.path = Path(path)
        check_writable(self.path)
        self._lock = _lock(self.path)
        self._files: list[int] = []
        try:
            self.config = _plain(dict(config))
            self._agree()
            self._records, self._timings = (self._open(name) for name in ("records.jsonl", "timings.jsonl"))
            self.done = {str(r["id"]) for r in read_records(self.path)}
        except BaseException:
            self.close()
            raise

    def _agree(self) -> None:
        file = self.path / "config.json"
        if not file.exists():
            content = {"format": FORMAT, "config": self.config, "versions": versions()}
            _replace(file, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
            return
        old = read_config(self.path)["config"]
        differs = [key for key in sorted({*old, *self.config}) if old.get(key) != self.config.get(key)]
        if differs:
            said = "; ".join(f"{k} was {old.get(k)!r}, now {self.config.get(k)!r}" for k in differs)
            raise RunError(f"{str(self.path)!r} holds a run with other settings ({said}): choose another --out")

    def _open(self, name: str) -> int:
        fd = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._files.append(fd)
        _repair(fd)
        return fd

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, on disk when this returns. Its timing goes first, so that no record is without.

        Raises ValueError for an id that the run already has.
        """
        name = str(record["id"])
        if name in self.done:
            raise ValueError(f"record {name!r} is already in {str(self.path)!r}")
        timing = {key: record[key] for key in VOLATILE if key in record}
        _append(self._timings, {"id": name, **timing})
        _append(self._records, {key: value for key, value in record.items() if key not in VOLATILE})
        self.done.add(name)

    def finalise(self, order: Iterable[str]) -> None:
        """Sort the records into ``order`` (ids; records not named go last). All or nothing, and harmless to repeat."""
        place = {name: i for i, name in enumerate(order)}
        lines: dict[str, str] = {}
        with (self.path / "records.jsonl").open(encoding="utf-8") as file:
            for line in file:
                lines.setdefault(str(json.loads(line)["id"]), line)
        ids = sorted(lines, key=lambda name: (place.get(name, len(place)), name))
        _replace(self.path / "records.jsonl", "".join(lines[name] for name in ids))
        os.close(self._records)  # it still points at the file that was replaced
        self._files.remove(self._records)
        self._records = self._open("records.jsonl")

    def close(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a run folder. Raises RunError where there is none, it is damaged, or from a newer version."""
    file = Path(path) / "config.json"
    if not file.is_file():
        raise RunError(f"{str(path)!r} is not a run folder: it has no config.json")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = content.get("format")
    except (ValueError, AttributeError) as error:
        raise RunError(f"{file} is damaged: {error}") from None
    if known != FORMAT:
        raise RunError(f"{file}: format {known!r}; this version reads {FORMAT}")
    return content


def read_records(path: str | Path, *, timings: bool = False, skip_bad_lines: bool = False) -> list[dict[str, Any]]:
    """Records of a run folder in file order, also while the run goes on (a line being written is left out).

    With ``timings`` the machine-dependent fields are put back. Raises BadLine (file and line number), RunError where
    there is no records.jsonl.
    """
    records = _lines(Path(path) / "records.jsonl", skip_bad_lines)
    if timings:
        by_id = {row["id"]: row for row in _lines(Path(path) / "timings.jsonl", skip_bad_lines)}
        records = [{**by_id.get(r["id"], {}), **r} for r in records]
    return records


def _lines(file: Path, skip_bad_lines: bool) -> list[dict[str, Any]]:
    if not file.is_file():
        raise RunError(f"{str(file.parent)!r} is not a run folder: it has no {file.name}")
    text = file.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1].split("\n")  # splitlines would also cut at U+2028 inside a string
    return [row for _, row in parse_lines(whole, file, skip_bad_lines=skip_bad_lines)]


def _lock(path: Path) -> IO[str]:
    file = (path / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        problem = f"{str(path)!r} is being written by another process; wait for it or choose another --out"
        raise RunError(problem) from None
    return file


def _repair(fd: int) -> None:
    """Cut a last line that has no newline: the process died while writing it."""
    size = os.fstat(fd).st_size
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(fd, end)
        os.fsync(fd)


def _append(fd: int, row: Mapping[str, Any]) -> None:
    data = (json.dumps(_plain(row), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n").encode()
    while data:  # one write unless the disk is full or a signal came in between
        data = data[os.write(fd, data) :]
    os.fsync(fd)


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _plain(value: Any) -> Any:
    """JSON-able: numpy scalars and arrays become Python's, tuples lists, NaN and infinities None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
