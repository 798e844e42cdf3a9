"""A study as it is kept in the repository: numbers of every answer, and what they were made with.

``bench/studies/results/NAME.json`` has the facts (model and its SHA-256, commands, commit, date, machine), the
problems' ids, and per method columns of numbers, one entry per answer. Tables and pictures are made from these files
alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


@dataclass
class Study:
    """facts: what it was made with. problems: ids. methods: label → columns of numbers. extra: the rest."""

    name: str
    facts: dict[str, Any]
    problems: list[str]
    methods: dict[str, dict[str, list[Any]]]
    extra: dict[str, Any] = field(default_factory=dict)

    def rows(self, method: str, *, below: int | None = None) -> list[Row]:
        """Answers of a method as ``fastpower.evaluate.statistics`` takes them; chains ``below`` a number only.

        Raises KeyError for a method that the study does not have.
        """
        columns = self.methods[method]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [row for row in rows if below is None or row["chain"] < below]

    def common(self, fewest: int = 20) -> Study:
        """The study on the problems that all methods have which have at least ``fewest``, without the others: what may
        be compared side by side."""
        of = {method: set(columns["problem"]) for method, columns in self.methods.items()}
        kept = {method: found for method, found in of.items() if len(found) >= fewest}
        shared = set.intersection(*kept.values()) if kept else set()
        methods = {m: columns_of([row for row in self.rows(m) if row["problem"] in shared]) for m in kept}
        return Study(self.name, self.facts, self.problems, methods if shared else {}, self.extra)

    def first(self, *names: str) -> Iterator[str]:
        """Labels of the methods whose name is one of ``names``, in the study's order."""
        return (label for label in self.methods if label.partition("(")[0] in names)

    def save(self, folder: Path = RESULTS) -> Path:
        """Write it, one column a line so that a change can be read."""
        path = folder / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"name": self.name, "facts": self.facts, "problems": self.problems, "extra": self.extra}
        text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)[:-2] + ',\n "methods": {\n'
        text += ",\n".join(
            f"  {json.dumps(label)}: {{\n"
            + ",\n".join(
                f'   "{name}": {json.dumps(values, separators=(",", ":"))}' for name, values in columns.items()
            )
            + "\n  }"
            for label, columns in self.methods.items()
        )
        path.write_text(text + "\n }\n}\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, name: str, folder: Path = RESULTS) -> Study:
        """Read it. Raises FileNotFoundError where there is none of this name."""
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return cls(found["name"], found["facts"], found["problems"], found["methods"], found["extra"])


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows turned into columns; all rows have the same keys.

    >>> columns_of([{"problem": 0, "logp": -1.5}, {"problem": 1, "logp": -2.0}])
    {'problem': [0, 1], 'logp': [-1.5, -2.0]}
    """
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
