"""Single draws, answers chosen among several, votes and pass@k never share a column without a label."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from fastpower.evaluate.report.csv_files import write_methods
from fastpower.evaluate.report.table import cells, several_answers
from fastpower.evaluate.summary import Row, summarise


def record(method: str, problem: int, chain: int, **more: Any) -> dict[str, Any]:
    right = (problem + chain) % 3 == 0
    facts = {"method": method, "problem": f"p{problem}", "prompt_id": f"p{problem}", "chain": chain, "correct": right}
    numbers = {"logp": -1.0 - chain, "token_ids": [1, 2], "decoded_tokens": 4 if method == "plain" else 9}
    return facts | numbers | {"ended": True, "answer": str(right)} | more


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    records = [record(method, p, c) for method in ("plain", "mh") for p in range(20) for c in range(3)]
    records += [record("best_of_n(n=5)", p, c, diagnostics={"draws": 5}) for p in range(20) for c in range(3)]
    return summarise(records, chains=3, match_best_of_n=True)


def test_every_row_says_what_its_accuracy_is_of(rows: list[Row]) -> None:
    graded = {row.method: row.graded for row in rows}
    assert graded["plain"] == graded["mh"] == "one answer"
    assert graded["best_of_n(n=5)"] == "best of 5 by log p"
    assert graded["best-of-N @ mh"].startswith("best of 3")
    headers, lines = cells(rows)
    assert [line[headers.index("graded")] for line in lines] == list(graded.values())


def test_single_draws_votes_and_pass_at_k_have_columns_of_their_own(rows: list[Row]) -> None:
    found = several_answers(rows)
    assert found is not None
    headers, lines = found
    assert headers[1:] == ["single draws: accuracy of one answer", "pass@k (any of k right)", "majority vote of k"]
    single = {line[0]: line[1] for line in lines}
    assert single["best_of_n(n=5)"] == "–" != single["plain"]


def test_the_csv_file_says_it_too(rows: list[Row], tmp_path: Path) -> None:
    write_methods(tmp_path / "methods.csv", rows)
    with (tmp_path / "methods.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["graded"] for line in lines] == [row.graded for row in rows]
    assert {"accuracy", "pass_at_k", "majority", "k"} <= set(lines[0])
