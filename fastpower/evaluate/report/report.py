"""``report.html``: a run on one self-contained page. No network, no external files; readable without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastpower.evaluate.report import charts
from fastpower.evaluate.report.page import SCRIPT, STYLE
from fastpower.evaluate.report.table import cells, several_answers
from fastpower.evaluate.runs import read_config
from fastpower.evaluate.statistics import FEW, Record, by_problem
from fastpower.evaluate.summary import Row
from fastpower.models import DEFAULT_MODEL
from fastpower.results.colours import COLOURS
from fastpower.results.traces import by_method, moves_of

PROBLEMS = 12  #: problems whose answers are shown
TOKENS = 1500  #: tokens of an answer that are shown


def write_report(path: str | Path, records: Sequence[Record], rows: Sequence[Row]) -> Path:
    """Write ``report.html`` into the run folder ``path`` and return its path."""
    content = read_config(path)
    file = Path(path) / "report.html"
    file.write_text(page(content["config"], content["versions"], records, rows), encoding="utf-8")
    return file


def page(config: Mapping[str, Any], versions: Mapping[str, str], records: Sequence[Record], rows: Sequence[Row]) -> str:
    """The whole document. It is well-formed XML, too."""
    groups = by_method(records)
    colours = {row.method: COLOURS[i % len(COLOURS)] for i, row in enumerate(rows)}
    colours = {name: COLOURS[-1] for name in groups} | colours
    title = f"{config.get('task', 'run')} · fastpower"
    body = [
        f"<header><h1>{escape(str(config.get('task', 'run')))}</h1>{_facts(config, versions)}</header>",
        _section(
            "Methods",
            _few(rows) + _tables(rows, colours),
            "Accuracy is the mean over problems, ± one standard error. Δ is the "
            "paired difference to the first method with its 95 % bootstrap interval. log p is of the whole answer "
            "under the model itself, in nats; decoded counts rejected tokens, too.",
        ),
        _figures(
            [
                (
                    "Accuracy against tokens decoded",
                    charts.accuracy_against(rows, [row.decoded_tokens for row in rows], "tokens decoded per answer"),
                ),
                (
                    "Accuracy against wall clock",
                    charts.accuracy_against(
                        rows,
                        [row.wall_seconds / row.answers if row.wall_seconds else None for row in rows],
                        "seconds per answer, all together",
                    ),
                ),
                ("log p per token over moves", charts.logp_over_moves(groups, colours)),
                ("Acceptance by cut position", charts.acceptance(groups, colours)),
            ],
            _legend(groups, colours),
        ),
        _answers(records, colours),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(filter(None, body))}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _facts(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
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
    shown = [f"<span><b>{escape(k)}</b> {escape(str(v))}</span>" for k, v in facts.items() if v is not None]
    return f'<p class="facts">{"".join(shown)}</p>'


def _model_name(name: Any) -> Any:
    return DEFAULT_MODEL if name == "default" else name


def _section(title: str, content: str, note: str = "") -> str:
    text = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{text}</section>"


def _few(rows: Sequence[Row]) -> str:
    """The warning of a run over too few problems for its intervals."""
    n = min((row.accuracy.problems for row in rows), default=FEW)
    if n >= FEW:
        return ""
    return (
        f'<p class="warning"><b>{n} {"problem" if n == 1 else "problems"} only.</b> Below {FEW}, standard errors and '
        "intervals come out too narrow, and one problem moves an accuracy by "
        f"{charts.percent(1 / n) if n else 'all of it'}: more problems before conclusions.</p>"
    )


def _tables(rows: Sequence[Row], colours: Mapping[str, str]) -> str:
    notes = {row.method: row.note for row in rows}
    parts = [part for part in (cells(rows), several_answers(rows)) if part is not None]
    return "".join(_table(headers, lines, colours, notes if i == 0 else {}) for i, (headers, lines) in enumerate(parts))


def _table(
    headers: Sequence[str], lines: Sequence[Sequence[str]], colours: Mapping[str, str], notes: Mapping[str, str]
) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    body = ""
    for line in lines:
        key = f'<i class="key" style="background:{colours[line[0]]}"></i>'
        note = f"<small>{escape(notes[line[0]])}</small>" if notes.get(line[0]) else ""
        body += f"<tr><td>{key}{escape(line[0])}{note}</td>"
        body += "".join(f"<td>{escape(text)}</td>" for text in line[1:]) + "</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figures(figures: Sequence[tuple[str, str | None]], legend: str = "") -> str:
    shown = [f"<figure><figcaption>{escape(t)}</figcaption>{svg}</figure>" for t, svg in figures if svg is not None]
    return f'<section class="figures">{"".join(shown)}{legend}</section>' if shown else ""


def _legend(groups: Mapping[str, Sequence[Record]], colours: Mapping[str, str]) -> str:
    """The colours of the methods that make moves, for the charts that do not name their lines; "" without any."""
    moving = [name for name, group in groups.items() if any(moves_of(record) for record in group)]
    keys = [f'<span><i class="key" style="background:{colours[n]}"></i>{escape(n)}</span>' for n in moving]
    return f'<p class="legend">{"".join(keys)}</p>' if keys else ""


def _chosen(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Problems on which methods disagree first; of each method the first answer."""
    groups = {
        name: [r for r in group if int(r["chain"]) == min(int(q["chain"]) for q in group if q["method"] == r["method"])]
        for name, group in by_problem(records).items()
    }
    mixed = [name for name, group in groups.items() if len({bool(r["correct"]) for r in group}) > 1]
    rest = [name for name in groups if name not in set(mixed)]
    return {name: groups[name] for name in (mixed + rest)[:PROBLEMS]}


def _answers(records: Sequence[Record], colours: Mapping[str, str]) -> str:
    chosen = _chosen(records)
    if not chosen:
        return ""
    options, panels = "", ""
    for i, (name, group) in enumerate(chosen.items()):
        verdicts = "".join("✓" if r["correct"] else "✗" for r in group)
        options += f'<option value="{i}">{escape(name)} {verdicts}</option>'
        tabs = "".join(
            f'<button type="button" data-tab="{i}-{j}"><i class="key" style="background:{colours[r["method"]]}"></i>'
            f"{escape(str(r['method']))} {'✓' if r['correct'] else '✗'}</button>"
            for j, r in enumerate(group)
        )
        cards = "".join(f'<article data-card="{i}-{j}">{_answer(r)}</article>' for j, r in enumerate(group))
        question = escape(str(group[0].get("question", "")))
        asked = f'<p class="question">{question}</p>' if question else ""
        reference = escape(_short(str(group[0].get("reference", ""))))
        expected = f'<p class="reference"><b>expected</b> <code>{reference}</code></p>'
        panels += f'<div class="problem" data-problem="{i}">{asked}{expected}<nav>{tabs}</nav>{cards}</div>'
    total = len(by_problem(records))
    note = (
        f"{len(chosen)} of {total} problems, those first on which the methods disagree." if len(chosen) < total else ""
    )
    picker = (
        f'<div class="picker"><label>Problem <select id="problem">{options}</select></label>'
        '<label>Colour <select id="colour"><option value="entropy">entropy before the token</option>'
        '<option value="surprise">surprise −log p</option></select></label>'
        '<span class="scale"><i class="l0"></i><i class="l2"></i><i class="l4"></i><i class="l6"></i><i class="l8"></i>'
        " 0 … ≥ 3 nats</span></div>"
    )
    return _section("Answers", picker + panels, note)


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[:limit] + " …"


def _answer(record: Record) -> str:
    facts = [
        f"log p {float(record['logp']):.2f}",
        f"{len(record['token_ids'])} tokens, {record['decoded_tokens']} decoded",
    ]
    if record.get("acceptance") is not None:
        facts.append(f"{record['accepted']} of {record['moves']} moves accepted")
    facts += ["ended" if record["ended"] else "cut off at the horizon", f"chain {record['chain']}"]
    if not record.get("exact", True):
        facts.append("approximate method")
    verdict = '<b class="right">right</b>' if record["correct"] else '<b class="wrong">wrong</b>'
    given = "" if record.get("answer") is None else f" <code>{escape(_short(str(record['answer'])))}</code>"
    note = f" <small>{escape(str(record['note']))}</small>" if record.get("note") else ""
    shown = [
        f'<p class="verdict">{verdict}{given}{note}<span>{escape(" · ".join(facts))}</span></p>',
        _heat_map(record),
        f"<figure>{_caption(record)}{charts.entropy_and_cuts(record)}</figure>",
        _figures(
            [
                ("log p per token over moves", charts.logp_trace(record)),
                ("Effective sample size", charts.ess(record)),
                ("Genealogy of the particles", charts.genealogy(record)),
            ]
        ).replace("section", "div"),
    ]
    return "".join(shown)


def _caption(record: Record) -> str:
    legend = ""
    if any(m.get("cut") is not None for m in record.get("trace") or ()):
        legend = (
            ', and where moves cut: <i class="dot yes"></i> accepted, with the part it replaced; '
            '<i class="dot no"></i> rejected'
        )
    return f"<figcaption>Entropy along the answer{legend}</figcaption>"


def _heat_map(record: Record) -> str:
    """The answer token by token; levels 0 … 9 are thirds of a nat."""
    texts = record.get("token_text") or [f"[{token}]" for token in record["token_ids"]]
    spans = []
    for i, text in enumerate(texts[:TOKENS]):
        h, s = float(record["entropy"][i] or 0.0), -float(record["token_logp"][i] or 0.0)
        levels = f"e{min(9, int(3 * h))} s{min(9, int(3 * s))}"
        shown = escape(text) if text else "<em>end</em>"
        spans.append(f'<span class="{levels}" title="token {i}: entropy {h:.2f}, −log p {s:.2f}">{shown}</span>')
    more = f"<em> … {len(texts) - TOKENS} more tokens</em>" if len(texts) > TOKENS else ""
    return f'<div class="answer">{"".join(spans)}{more}</div>'
