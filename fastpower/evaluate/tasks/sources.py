"""Where a task's rows come from: a path that the user gives, else the ``datasets`` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastpower.errors import FastpowerError
from fastpower.evaluate.rows import Row, read_rows


class NoData(FastpowerError, ValueError):
    """A task's problems could not be found."""


def rows_of(task: str, data: str | Path | None, hub: tuple[str, str | None, str], skip_bad_lines: bool) -> list[Row]:
    """Rows from ``data``, or from data set ``hub`` = (name, configuration, split) through ``datasets``."""
    if data is not None:
        rows = read_rows(data, skip_bad_lines=skip_bad_lines)
    else:
        name, configuration, split = hub
        remedy = f"give a file with --data PATH, or `pip install datasets` and allow access to {name!r} on the hub"
        try:
            import datasets
        except ImportError:
            raise NoData(f"task {task!r} has no problems of its own: {remedy}") from None
        try:
            rows = [dict(row) for row in datasets.load_dataset(name, configuration, split=split)]
        except Exception as error:  # the library raises dozens of kinds: offline, gated, renamed
            raise NoData(f"task {task!r}: {name!r} could not be loaded ({type(error).__name__}): {remedy}") from error
    if not rows:
        raise NoData(f"task {task!r}: {data or hub[0]} holds no rows")
    return rows


def first(row: Row, *names: str, task: str, default: Any = None) -> Any:
    """The first of ``names`` that the row has and is not None; NoData naming the row's keys where none is."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    if default is not None:
        return default
    raise NoData(f"task {task!r}: a row has none of the fields {', '.join(names)}; it has {', '.join(map(str, row))}")
