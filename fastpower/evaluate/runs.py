"""A run folder: what was asked, and every record as soon as it is finished.

    RUN/config.json     settings, versions, seed
    RUN/records.jsonl   one record a line, appended and synced as it finishes; sorted into plan order by ``finalise``
    RUN/timings.jsonl   what depends on the machine and its load: seconds, forwards (one line per record)

Timings are kept out of the records so that a record depends on the settings alone: a run that was killed and resumed
ends with the same bytes in ``records.jsonl`` as one that was not (on a decoder with batch-invariant logits).
"""

from __future__ import annotations

import contextlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from fastpower import __version__
from fastpower.errors import FastpowerError
from fastpower.evaluate.fields import problem_of_config, problem_of_record
from fastpower.evaluate.journal import Journal, plain, replace_text
from fastpower.evaluate.rows import Row, parse_lines

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
    records that are safely on disk. With ``skip_bad_lines`` lines that are no records are moved to a file beside it
    (``records.jsonl.bad``), and their answers are missing.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        skip_bad_lines: bool = False,
        extends: Callable[[Mapping[str, Any]], bool] = lambda old: False,
    ) -> None:
        """Open ``path``, creating it if needed.

        Args:
            path: The run folder.
            config: It must equal the folder's own if it has one, or ask for more.
            skip_bad_lines: Move lines that are no records to a file beside it.
            extends: Says of the folder's own config whether everything in it is wanted still.

        Raises:
            RunError: Not writable, another process is writing, another config (naming what differs).
            BadLine: A damaged line that is not the last.
            NotWritten: The disk is full.
        """
        self.path = Path(path)
        check_writable(self.path)
        self._open = contextlib.ExitStack()  # what close closes, last first
        try:
            _lock(self.path, self._open)
            self.config = plain(dict(config))
            self._agree(extends)
            if skip_bad_lines:
                for name in ("records.jsonl", "timings.jsonl"):
                    _set_aside(self.path / name)
            self._timings = self._open.enter_context(Journal(self.path / "timings.jsonl"))
            self._records = Journal(self.path / "records.jsonl")
            self._open.callback(lambda: self._records.close())  # whichever it is then: finalise opens it anew
            self.done = {str(r["id"]) for r in read_records(self.path)}
        except BaseException:
            self.close()
            raise

    def _agree(self, extends: Callable[[Mapping[str, Any]], bool]) -> None:
        file = self.path / "config.json"
        content = {"format": FORMAT, "config": self.config, "versions": versions()}
        if not file.exists():
            _write_config(file, content)
            return
        content = read_config(self.path)
        old = content["config"]
        if old == self.config:
            return
        if extends(old):
            _write_config(file, content | {"config": self.config})
            return
        differs = [key for key in sorted({*old, *self.config}) if old.get(key) != self.config.get(key)]
        said = "; ".join(f"{k} was {old.get(k)!r}, now {self.config.get(k)!r}" for k in differs)
        raise RunError(f"{str(self.path)!r} holds a run with other settings ({said}): choose another --out")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record, on disk when this returns. Its timing goes first, so that no record is without.

        Raises:
            ValueError: The run has a record of this id already.
            NotWritten: The disk did not take it; nothing of it is left in the folder.
        """
        name = str(record["id"])
        if name in self.done:
            raise ValueError(f"record {name!r} is already in {str(self.path)!r}")
        timing = {key: record[key] for key in VOLATILE if key in record}
        self._timings.append({"id": name, **timing})
        self._records.append({key: value for key, value in record.items() if key not in VOLATILE})
        self.done.add(name)

    def finalise(self, order: Iterable[str]) -> None:
        """Sort the records into ``order`` (ids; records not named go last). All or nothing, and harmless to repeat."""
        place = {name: i for i, name in enumerate(order)}
        lines: dict[str, str] = {}
        with (self.path / "records.jsonl").open(encoding="utf-8") as file:
            for line in file:
                lines.setdefault(str(json.loads(line)["id"]), line)
        ids = sorted(lines, key=lambda name: (place.get(name, len(place)), name))
        replace_text(self.path / "records.jsonl", "".join(lines[name] for name in ids))
        replaced, self._records = self._records, Journal(self.path / "records.jsonl")
        replaced.close()

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a run folder.

    Raises:
        RunError: There is none, it is damaged, or from a newer version.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise RunError(f"{str(path)!r} is not a run folder: it has no config.json")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known = content.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RunError(f"{file} is damaged: {error}") from None
    if known != FORMAT:
        raise RunError(f"{file}: format {known!r}; this version reads {FORMAT}")
    problem = problem_of_config(content.get("config"))
    if problem is None and not isinstance(content.get("versions"), dict):
        problem = "'versions' is no object"
    if problem is not None:
        raise RunError(f"{file} is damaged: {problem}")
    return content


def read_records(
    path: str | Path, *, timings: bool = False, skip_bad_lines: bool = False, answers: bool = False
) -> list[dict[str, Any]]:
    """Records of a run folder in file order, also while the run goes on (a line being written is left out).

    Args:
        path: The run folder.
        timings: Put the machine-dependent fields back.
        skip_bad_lines: Leave out lines that are no records.
        answers: A line without a field that every answer has is bad.

    Raises:
        BadLine: A damaged line; file, line number and field are named.
        RunError: There is no records.jsonl.
    """
    check = partial(problem_of_record, whole_answer=answers)
    records = _lines(Path(path) / "records.jsonl", skip_bad_lines, check)
    if timings:
        by_id = {row["id"]: row for row in _lines(Path(path) / "timings.jsonl", skip_bad_lines, problem_of_record)}
        records = [{**by_id.get(r["id"], {}), **r} for r in records]
    return records


def _lines(file: Path, skip_bad_lines: bool, check: Callable[[Row], str | None]) -> list[dict[str, Any]]:
    if not file.is_file():
        raise RunError(f"{str(file.parent)!r} is not a run folder: it has no {file.name}")
    text = file.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1].split("\n")  # splitlines would also cut at U+2028 inside a string
    return [row for _, row in parse_lines(whole, file, skip_bad_lines=skip_bad_lines, check=check)]


def _write_config(file: Path, content: Mapping[str, Any]) -> None:
    replace_text(file, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _lock(path: Path, until: contextlib.ExitStack) -> None:
    """Keep other writers out of the folder until ``until`` is closed."""
    lock = FileLock(path / ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        problem = f"{str(path)!r} is being written by another process; wait for it or choose another --out"
        raise RunError(problem) from None
    until.callback(lock.release)


def _set_aside(file: Path) -> None:
    """Move lines that are no records to ``FILE.bad``."""
    if not file.is_file():
        return
    good: list[str] = []
    bad: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if line.strip():
            (good if isinstance(row, dict) and problem_of_record(row) is None else bad).append(line + "\n")
    if bad:
        place = file.with_name(f"{file.name}.bad")
        before = place.read_text(encoding="utf-8") if place.is_file() else ""
        replace_text(place, before + "".join(bad))
        replace_text(file, "".join(good))
