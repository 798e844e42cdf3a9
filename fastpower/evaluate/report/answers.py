"""What the report's templates show of problems and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fastpower.evaluate.report import charts
from fastpower.evaluate.report.formulas import typeset
from fastpower.evaluate.statistics import by_problem
from fastpower.results.traces import RunLine, by_method

PROBLEMS = 12  #: problems whose answers are shown
TOKENS = 1500  #: tokens of an answer that are shown


def chosen_problems(records: Sequence[RunLine]) -> dict[str, list[RunLine]]:
    """Problems on which methods disagree first; of each method the first answer."""
    groups = {
        name: [r for r in group if int(r["chain"]) == min(int(q["chain"]) for q in group if q["method"] == r["method"])]
        for name, group in by_problem(records).items()
    }
    mixed = [name for name, group in groups.items() if len({bool(r["correct"]) for r in group}) > 1]
    rest = [name for name in groups if name not in set(mixed)]
    return {name: groups[name] for name in (mixed + rest)[:PROBLEMS]}


def problem_lines(records: Sequence[RunLine], methods: Sequence[str], chosen: Sequence[str]) -> list[dict[str, Any]]:
    """One line per problem: right answers of every method, and the place of the problem among ``chosen``."""
    lines = []
    for name, group in by_problem(records).items():
        of = by_method(group)
        lines.append(
            {
                "name": name,
                "reference": str(group[0].get("reference", "")),
                "right": float(np.mean([bool(r["correct"]) for r in group])),
                "card": chosen.index(name) if name in chosen else None,
                "cells": [_cell(of[method]) if method in of else None for method in methods],
            }
        )
    return lines


def _cell(group: Sequence[RunLine]) -> dict[str, Any]:
    return {
        "right": sum(bool(r["correct"]) for r in group),
        "of": len(group),
        "logp": float(np.mean([float(r["logp"]) for r in group])),
        "tokens": float(np.mean([len(r["token_ids"]) for r in group])),
    }


def shown_problem(name: str, group: Sequence[RunLine], methods: Sequence[str]) -> dict[str, Any]:
    """A problem with one answer of every method that has one; an answer's ``index`` is its method's."""
    return {
        "name": name,
        "question": str(group[0].get("question", "")),
        "reference": str(group[0].get("reference", "")),
        "answers": [_answer(record, methods.index(str(record["method"]))) for record in group],
    }


def _answer(record: RunLine, index: int) -> dict[str, Any]:
    texts = [str(text) for text in record.get("token_text") or [f"[{token}]" for token in record["token_ids"]]]
    whole = typeset("".join(texts[:TOKENS]))
    return {
        "index": index,
        "method": str(record["method"]),
        "correct": bool(record["correct"]),
        "answer": None if record.get("answer") is None else str(record["answer"]),
        "note": str(record.get("note") or ""),
        "facts": _facts(record),
        "tokens": [_token(record, i, text) for i, text in enumerate(texts[:TOKENS])],
        "more": max(0, len(texts) - TOKENS),
        "formulas": whole if "<math" in whole else None,
        "cuts": any(m.get("cut") is not None for m in record.get("trace") or ()),
        "entropy": Markup(charts.entropy_and_cuts(record)),
        "charts": [
            charts.figure("log p per token over moves", charts.logp_trace(record)),
            charts.figure("Effective sample size", charts.ess(record)),
            charts.figure("Genealogy of the particles", charts.genealogy(record)),
        ],
    }


def _facts(record: RunLine) -> list[str]:
    facts = [
        f"log p {float(record['logp']):.2f}",
        f"{len(record['token_ids'])} tokens, {record['decoded_tokens']} decoded",
    ]
    if record.get("acceptance") is not None:
        facts.append(f"{record['accepted']} of {record['moves']} moves accepted")
    facts += ["ended" if record["ended"] else "cut off at the horizon", f"chain {record['chain']}"]
    if not record.get("exact", True):
        facts.append("approximate method")
    return facts


def _token(record: RunLine, i: int, text: str) -> dict[str, Any]:
    """A token of the heat map; levels 0 … 9 are thirds of a nat."""
    h, s = float(record["entropy"][i] or 0.0), -float(record["token_logp"][i] or 0.0)
    tip = f"token {i}: entropy {h:.2f}, −log p {s:.2f}"
    return {"text": text, "e": min(9, int(3 * h)), "s": min(9, int(3 * s)), "tip": tip}
