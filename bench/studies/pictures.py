"""A study's pictures as SVG, drawn with the marks of the evaluation report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.studies.study import Study
from bench.studies.tables import label
from fastpower.evaluate.report.svg import Chart
from fastpower.evaluate.statistics import accuracy, mean_over_problems
from fastpower.results.colours import COLOURS, FAINT, GRID, INK, MUTED, PAPER

STYLE = (
    "text{font:11px system-ui,sans-serif}.tick{fill:" + MUTED + "}.axis{fill:" + INK + "}.label{font-size:11px}"
    ".title{font-size:13px;font-weight:600;fill:" + INK + "}"
)


def frame(charts: Sequence[tuple[str, Chart]], columns: int = 2) -> str:
    """Charts side by side in one file of its own, on white paper."""
    width, height = max(c.width for _, c in charts), max(c.height for _, c in charts) + 22
    rows = -(-len(charts) // columns)
    parts = []
    for i, (title, chart) in enumerate(charts):
        x, y = (i % columns) * width, (i // columns) * height
        inner = chart.svg().replace("<svg ", f'<svg x="0" y="22" width="{chart.width:g}" height="{chart.height:g}" ', 1)
        parts.append(
            f'<g transform="translate({x:g} {y:g})"><text x="12" y="15" class="title">{title}</text>{inner}</g>'
        )
    w, h = width * min(columns, len(charts)), height * rows
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}">'
    return f'{head}<style>{STYLE}</style><rect width="100%" height="100%" fill="{PAPER}"/>{"".join(parts)}</svg>\n'


def cost_chart(study: Study) -> Chart:
    """Accuracy with standard errors against tokens decoded per answer; every method."""
    return _accuracy_chart(study, "decoded", "tokens decoded per answer, rejected ones too", log_x=True)


def logp_chart(study: Study) -> Chart:
    """Accuracy against mean −log p, on a logarithmic axis."""
    return _accuracy_chart(study, "logp", "mean −log p of the answers (nats): likelier ones to the left", log_x=True)


def _accuracy_chart(study: Study, key: str, x_label: str, *, log_x: bool) -> Chart:
    points = []
    y_label = f"accuracy on {len({row['problem'] for row in study.rows('low_temperature')})} problems"
    for method in study.methods:
        rows = study.rows(method)
        points.append((label(method), abs(mean_over_problems(rows, key).mean), accuracy(rows)))
    xs = [x for _, x, _ in points]
    low, high = min(e.mean - e.se for _, _, e in points), max(e.mean + e.se for _, _, e in points)
    pad = 0.08 * (high - low)
    span = (min(xs) / 1.3, max(xs) * 1.9) if log_x else (min(xs) - 1, max(xs) + 0.12 * (max(xs) - min(xs)) + 1)
    chart = Chart(f"accuracy against {key}", x_label, y_label, span, (low - pad, high + pad), 560, 330, log_x=log_x)
    placed: list[tuple[float, float]] = []
    for i, (name, x, e) in enumerate(points):
        colour = COLOURS[i % len(COLOURS)]
        chart.segment((x, e.mean - e.se), (x, e.mean + e.se), colour, 1.2, 'stroke-opacity="0.5"')
        chart.dot(x, e.mean, colour, f"{name}: {e}")
        dy = 3.5
        while any(abs(chart.px(x) - a) < 6.2 * len(name) and abs(chart.py(e.mean) + dy - b) < 11 for a, b in placed):
            dy += 4 if len(placed) % 2 else -4
            if abs(dy) > 60:
                break
        placed.append((chart.px(x), chart.py(e.mean) + dy))
        left = chart.px(x) + 6.2 * len(name) > chart.width - 4
        chart.text(x, e.mean, name, colour, dx=-8 if left else 8, dy=dy, anchor="end" if left else "start")
    return chart


def long_charts(study: Study) -> list[tuple[str, Chart]]:
    """log p and acceptance over 50 moves of a few long chains."""
    chains: list[dict[str, Any]] = study.extra.get("long", [])
    if not chains:
        return []
    count = max(len(chain["logp"]) for chain in chains)
    gains = [[value - chain["start"] for value in chain["logp"]] for chain in chains]
    low, high = min(min(g) for g in gains), max(max(g) for g in gains)
    walk = Chart("", "move", "log p − that of the first answer", (0, count), (min(low, 0) - 0.5, high + 0.5), 560, 300)
    for gain in gains:
        walk.line(range(1, len(gain) + 1), gain, FAINT, 0.9)
    means = [statistics.fmean(g[i] for g in gains if i < len(g)) for i in range(count)]
    walk.line(range(1, count + 1), means, COLOURS[0], 2.4)
    walk.text(count, means[-1], "mean", COLOURS[0], dx=-6, dy=-8, anchor="end")
    size = 5
    rates = []
    for start in range(0, count, size):
        made = [flag for chain in chains for flag in chain["accepted"][start : start + size]]
        rates.append((start + size / 2, statistics.fmean(made)))
    rate = Chart("", "move", "accepted", (0, count), (0, max(r for _, r in rates) * 1.25 or 1), 560, 300)
    rate.line([x for x, _ in rates], [y for _, y in rates], COLOURS[1], 2)
    for x, y in rates:
        rate.dot(x, y, COLOURS[1], f"{100 * y:.0f} %", radius=3)
    return [("log p over moves", walk), (f"accepted, by {size} moves", rate)]


def heat_map(example: dict[str, Any]) -> str:
    """An answer as text, every token on the colour of its entropy, in lines of the answer's own."""
    from html import escape

    from fastpower.evaluate.report.style import HEAT

    width, size, line = 860.0, 6.9, 17.0
    marks, x, y = [], 10.0, 42.0
    for piece, entropy in zip(example["text"], example["entropy"], strict=True):
        colour = HEAT[min(len(HEAT) - 1, int(3 * entropy))]
        parts = piece.split("\n")
        for i, part in enumerate(parts):
            if i:
                x, y = 10.0, y + line
            while part:
                room = max(1, int((width - 10 - x) / size))
                now, part = part[:room], part[room:]
                if now.strip() or entropy > 0.33:
                    box = f'x="{x:.1f}" y="{y - 12:.1f}" width="{size * len(now):.1f}" height="{line - 1:g}"'
                    marks.append(f'<rect {box} fill="{colour}"/>')
                if now.strip():
                    text = escape(now).replace(" ", "\u00a0")
                    marks.append(f'<text x="{x:.1f}" y="{y:.1f}" textLength="{size * len(now):.1f}">{text}</text>')
                x += size * len(now)
                if part:
                    x, y = 10.0, y + line
    verdict = "right" if example["correct"] else "wrong"
    title = f"{example['problem']}, {label(example['method'])}: {verdict}, log p {example['logp']:.1f}"
    style = f"text{{font:11.5px ui-monospace,monospace;fill:{INK}}}.title{{font:600 13px system-ui,sans-serif}}"
    size_of = f'viewBox="0 0 {width:g} {y + 14:g}" width="{width:g}" height="{y + 14:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size_of}>'
    paper = f'<rect width="100%" height="100%" fill="{PAPER}" stroke="{GRID}"/>'
    text = f'<text x="10" y="20" class="title">{escape(title)}</text>{"".join(marks)}'
    return f"{head}<style>{style}</style>{paper}{text}</svg>\n"
