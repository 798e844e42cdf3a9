"""The summary of a run as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpower import terminal
from fastpower.evaluate.summary import Row
from fastpower.terminal import escaped


def _number(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)


Cells = tuple[list[str], list[list[str]]]


def cells(rows: Sequence[Row]) -> Cells:
    """Headers and text of every row; columns that no row fills are left out."""
    return _filled(
        {
            "method": [row.method for row in rows],
            "graded": [row.graded for row in rows],
            "accuracy ± s.e.": [str(row.accuracy) for row in rows],
            "Δ to the first [95 %]": [_difference(row) for row in rows],
            "log p": [_number(row.logp, ".1f") for row in rows],
            "tokens": [_number(row.tokens, ".0f") for row in rows],
            "decoded": [_number(row.decoded_tokens, ".0f") for row in rows],
            "ended": [_number(100 * row.ended, ".0f") + " %" for row in rows],
            "accept.": [_number(row.acceptance, ".2f") for row in rows],
            "ESS/N": [_number(row.ess, ".2f") for row in rows],
            "wall s": [_number(row.wall_seconds, ".1f") for row in rows],
            "tok/s": [_number(row.tokens_per_second, ".0f") for row in rows],
        }
    )


def several_answers(rows: Sequence[Row]) -> Cells | None:
    """The same for what needs several answers per problem; None where no method has them."""
    kept = [row for row in rows if row.pass_at_k is not None]
    if not kept:
        return None
    return _filled(
        {
            "method": [row.method for row in kept],
            "single draws: accuracy of one answer": [
                str(row.accuracy) if row.graded == "one answer" else "–" for row in kept
            ],
            "pass@k (any of k right)": [f"{row.pass_at_k[1]}, k = {row.pass_at_k[0]}" for row in kept if row.pass_at_k],
            "majority vote of k": [
                f"{row.majority[1]}, k = {row.majority[0]}" if row.majority else "–" for row in kept
            ],
        }
    )


def _filled(table: Mapping[str, list[str]]) -> Cells:
    kept = {name: column for name, column in table.items() if any(text != "–" for text in column)}
    return list(kept), [list(line) for line in zip(*kept.values(), strict=True)]


def _difference(row: Row) -> str:
    if row.against is None:
        return "–"
    return f"{row.against.mean:+.3f} [{row.against.low:+.3f}, {row.against.high:+.3f}]"


def render(rows: Sequence[Row], config: Mapping[str, Any], console: Console | None = None) -> None:
    """Print it. Notes follow below."""
    if console is None:
        console = terminal.console(150)
    said = {name: config.get(name, "?") for name in ("task", "problems", "alpha", "seed")}
    title = "{task}: {problems} problems, alpha {alpha}, seed {seed}".format_map(said)
    for part in (cells(rows), several_answers(rows)):
        if part is not None:
            console.print(_table(*part, title=title))
            title = ""
    for row in rows:
        if row.note:
            console.print(escaped(f"{row.method}: {row.note}"), markup=False)


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(_cell, line))
    return table


def _cell(text: str) -> Text:
    return Text(escaped(text))  # no markup: a method's settings may stand in brackets
