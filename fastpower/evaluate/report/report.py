"""``report.html``: a run on one self-contained page. No network, no external files; readable without scripts.

The page is made of the Jinja2 templates beside this file. They escape whatever they are given, so text from models and
data files cannot become markup; only charts, formulas and rules of style, which are made here, are marked as safe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastpower.evaluate.journal import replace_text
from fastpower.evaluate.report import charts, formulas, style
from fastpower.evaluate.report.answers import chosen_problems, problem_lines, shown_problem
from fastpower.evaluate.report.csv_files import write_methods, write_problems
from fastpower.evaluate.report.table import cells, several_answers
from fastpower.evaluate.runs import read_config
from fastpower.evaluate.statistics import FEW
from fastpower.evaluate.summary import Row
from fastpower.models import DEFAULT_MODEL
from fastpower.results.colours import COLOURS
from fastpower.results.traces import RunLine, by_method, moves_of


def write_report(path: str | Path, records: Sequence[RunLine], rows: Sequence[Row]) -> Path:
    """Write ``report.html``, ``methods.csv`` and ``problems.csv`` into a run folder.

    Args:
        path: The run folder; it holds ``config.json``.
        records: The run's records, with timings where they are to be shown.
        rows: What ``summarise`` makes of them.

    Returns:
        The path of ``report.html``.
    """
    content = read_config(path)
    file = Path(path) / "report.html"
    replace_text(file, page(content["config"], content["versions"], records, rows))
    write_methods(Path(path) / "methods.csv", rows)
    write_problems(Path(path) / "problems.csv", records)
    return file


def page(
    config: Mapping[str, Any], versions: Mapping[str, str], records: Sequence[RunLine], rows: Sequence[Row]
) -> str:
    """The whole document. It is well-formed XML, too."""
    groups = by_method(records)
    colours = {name: COLOURS[-1] for name in groups} | {
        row.method: COLOURS[i % len(COLOURS)] for i, row in enumerate(rows)
    }
    chosen = chosen_problems(records)
    few = min((row.accuracy.problems for row in rows), default=FEW)
    text = environment().get_template("report.html")
    return text.render(
        title=str(config.get("task", "run")),
        facts=_facts(config, versions),
        few=few if few < FEW else None,
        enough=FEW,
        tables=[part for part in (cells(rows), several_answers(rows)) if part is not None],
        notes={row.method: row.note for row in rows},
        colours=colours,
        charts=_overall(rows, groups, colours),
        moving=[name for name, group in groups.items() if any(moves_of(record) for record in group)],
        methods=list(groups),
        problems=problem_lines(records, list(groups), list(chosen)),
        shown=[shown_problem(name, group, list(groups)) for name, group in chosen.items()],
        light_style=style.light(),
        dark_style=style.dark(),
    )


@cache
def environment() -> Environment:
    """The templates, all of which escape; a name that they are not given is an error."""
    made = Environment(
        loader=PackageLoader("fastpower.evaluate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
    )
    made.globals |= {
        "percent": charts.percent,
        "short": _short,
        "typeset": formulas.typeset,
        "answer": formulas.typeset_answer,
    }
    return made


#: what no XML document may hold: control characters and halves of surrogate pairs
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def visible(value: Any) -> Any:
    """Characters that a page cannot hold, as ones that show what they were (␀ …) or, at least, that they were there."""
    if not isinstance(value, str) or not _UNPRINTABLE.search(value):
        return value
    text = _UNPRINTABLE.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", value)
    return Markup(text) if isinstance(value, Markup) else text


def _facts(config: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    model = config.get("model") or {}
    facts = {
        "model": _model_name(model.get("name") if isinstance(model, Mapping) else model),
        "weights": model.get("dtype") if isinstance(model, Mapping) else None,
        "problems": config.get("problems"),
        "answers each": config.get("chains"),
        "alpha": config.get("alpha"),
        "max new tokens": config.get("max_new_tokens"),
        "seed": config.get("seed"),
        **{name: versions[name] for name in ("fastpower", "torch") if name in versions},
    }
    return {name: value for name, value in facts.items() if value is not None}


def _model_name(name: Any) -> Any:
    return DEFAULT_MODEL if name == "default" else name


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[:limit] + " …"


def _overall(
    rows: Sequence[Row], groups: Mapping[str, Sequence[RunLine]], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    seconds = [row.wall_seconds / row.answers if row.wall_seconds else None for row in rows]
    decoded = [row.decoded_tokens for row in rows]
    return [
        charts.figure(
            "Accuracy against tokens decoded", charts.accuracy_against(rows, decoded, "tokens decoded per answer")
        ),
        charts.figure(
            "Accuracy against wall clock", charts.accuracy_against(rows, seconds, "seconds per answer, all together")
        ),
        charts.figure("log p per token over moves", charts.logp_over_moves(groups, colours)),
        charts.figure("Acceptance by cut position", charts.acceptance(groups, colours)),
    ]
