"""Rows of a data file: JSON, JSON Lines (also gzipped), CSV or Parquet, told apart by the file's name.

A line of JSON Lines that does not parse is reported by file and line number; with ``skip_bad_lines`` it is left out
with a warning and the rest is read.
"""

from __future__ import annotations

import csv
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastpower.errors import FastpowerError

Row = dict[str, Any]


class BadLine(FastpowerError, ValueError):
    """A line of a data file that is not a JSON object."""


def read_rows(path: str | Path, *, skip_bad_lines: bool = False) -> list[Row]:
    """All rows of ``path`` as dictionaries.

    ``.json`` holds a list of objects (or an object with one list of objects, such as ``{"data": […]}``), ``.jsonl`` one
    object a line (blank lines are ignored), ``.csv`` a header line, ``.parquet`` needs pandas and pyarrow. Any of the
    first three may be followed by ``.gz``.

    Args:
        path: The file.
        skip_bad_lines: Leave out lines that are no rows, with a warning.

    Raises:
        FileNotFoundError: No such file.
        BadLine: A line that is no row; file, line number and what is wrong are named.
        ValueError: Another suffix, or a file that is not what its suffix says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data file {str(path)!r} does not exist")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        return _parquet(path)
    try:
        with _open(path) as file:
            if suffix == ".csv":
                return _csv(file, path)
            if suffix in (".jsonl", ".ndjson"):
                return [row for _, row in parse_lines(file, path, skip_bad_lines=skip_bad_lines)]
            if suffix == ".json":
                return _json(file.read(), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {str(path)!r} is not UTF-8 text: {error}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"data file {str(path)!r} is no whole gzip file: {error}") from None
    raise ValueError(f"data file {str(path)!r}: suffix {suffix!r} is not one of .json, .jsonl, .csv, .parquet (.gz)")


def _open(path: Path) -> IO[str]:
    """Text, without the byte order mark that spreadsheets and some editors write."""
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def parse_lines(
    lines: Any, path: Path, *, skip_bad_lines: bool, check: Callable[[Row], str | None] | None = None
) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of every non-blank line. ``check`` says what else is wrong with an object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = None if isinstance(row, dict) else f"a JSON object is needed, this is a {type(row).__name__}"
        except (ValueError, RecursionError) as error:  # the second for brackets within brackets without end
            row, problem = None, str(error)
        if problem is None and check is not None:
            problem = check(row)
        if problem is None:
            yield number, row
            continue
        where = f"{path}, line {number}: {problem}"
        if not skip_bad_lines:
            raise BadLine(f"{where}. Repair the line, or leave such lines out with --skip-bad-lines")
        warnings.warn(f"left out {where}", stacklevel=2)


def _csv(file: IO[str], path: Path) -> list[Row]:
    reader = csv.DictReader(file)
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row:
                raise BadLine(f"{path}, line {reader.line_num}: more cells than the header has columns")
            rows.append(dict(row))
    except csv.Error as error:
        raise BadLine(f"{path}, line {reader.line_num}: {error}") from None
    return rows


def _json(text: str, path: Path) -> list[Row]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadLine(f"{path}, line {error.lineno}: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets within brackets
        raise BadLine(f"{path}: {error}") from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else None
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadLine(f"{path}: a list of JSON objects is needed")
    return value


def _parquet(path: Path) -> list[Row]:
    try:
        import pandas
    except ImportError:
        raise ValueError(f"data file {str(path)!r}: reading Parquet needs `pip install pandas pyarrow`") from None
    try:
        rows: list[Row] = pandas.read_parquet(path).to_dict("records")
    except ImportError:
        raise ValueError(f"data file {str(path)!r}: reading Parquet needs `pip install pyarrow`") from None
    except Exception as error:  # each engine has errors of its own
        raise ValueError(f"data file {str(path)!r} is no whole Parquet file: {error}") from None
    return rows
