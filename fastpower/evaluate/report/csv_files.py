"""The report's tables as CSV, in numbers that a spreadsheet or pandas reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastpower.evaluate.journal import replace_text
from fastpower.evaluate.statistics import by_problem
from fastpower.evaluate.summary import Row
from fastpower.results.traces import RunLine, by_method


def write_methods(path: Path, rows: Sequence[Row]) -> None:
    """One line per method: accuracies and differences as fractions, log p in nats; empty where there is no number."""
    _write(path, map(_method, rows))


def _method(row: Row) -> dict[str, Any]:
    gap, k, vote = row.against, row.pass_at_k, row.majority
    return {
        "method": row.method,
        "problems": row.accuracy.problems,
        "answers": row.answers,
        "graded": row.graded,
        "accuracy": row.accuracy.mean,
        "accuracy_se": row.accuracy.se,
        "accuracy_low": row.accuracy.interval[0],
        "accuracy_high": row.accuracy.interval[1],
        "difference": gap and gap.mean,
        "difference_low": gap and gap.low,
        "difference_high": gap and gap.high,
        "p_value": gap and gap.p_value,
        "logp": row.logp,
        "tokens": row.tokens,
        "decoded_tokens": row.decoded_tokens,
        "ended": row.ended,
        "acceptance": row.acceptance,
        "ess": row.ess,
        "wall_seconds": row.wall_seconds,
        "tokens_per_second": row.tokens_per_second,
        "k": k and k[0],
        "pass_at_k": k and k[1].mean,
        "pass_at_k_se": k and k[1].se,
        "majority": vote and vote[1].mean,
        "majority_se": vote and vote[1].se,
        "note": row.note,
    }


def write_problems(path: Path, records: Sequence[RunLine]) -> None:
    """One line per problem and method: answers, right ones, and their mean log p, tokens, decoded tokens."""
    _write(
        path,
        (
            {
                "problem": name,
                "method": method,
                "answers": len(group),
                "right": sum(bool(r["correct"]) for r in group),
                "logp": float(np.mean([float(r["logp"]) for r in group])),
                "tokens": float(np.mean([len(r["token_ids"]) for r in group])),
                "decoded_tokens": float(np.mean([int(r["decoded_tokens"]) for r in group])),
            }
            for name, answers in by_problem(records).items()
            for method, group in by_method(answers).items()
        ),
    )


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    lines = list(lines)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows({k: "" if v is None or v != v else v for k, v in line.items()} for line in lines)
    replace_text(path, file.getvalue())
