"""The report's charts: what a run and an answer look like."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from fastpower.evaluate.report.svg import TOP, Chart, number, side_label
from fastpower.evaluate.summary import Row
from fastpower.results.colours import BAD, COLOURS, FAINT, GOOD, INK, MUTED, PAPER
from fastpower.results.traces import (
    RunLine,
    acceptance_by_position,
    ancestry,
    ess_curve,
    lineage,
    moves_of,
    particles_of,
)


def figure(title: str, svg: str | None) -> dict[str, Any]:
    """A chart for the report's templates; its marks have been escaped when they were drawn."""
    return {"title": title, "svg": None if svg is None else Markup(svg)}


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def accuracy_against(rows: Sequence[Row], costs: Sequence[float | None], x_label: str) -> str | None:
    """Accuracy with standard errors against a cost per answer, on a logarithmic axis; None without costs."""
    points = [(row, cost, i) for i, (row, cost) in enumerate(zip(rows, costs, strict=True)) if cost]
    if not points:
        return None
    low, high = min(c for _, c, _ in points), max(c for _, c, _ in points)
    tops = [row.accuracy.mean + _se(row) for row, _, _ in points]
    bottoms = [row.accuracy.mean - _se(row) for row, _, _ in points]
    span = max(max(tops) - min(bottoms), 0.1)
    y = (max(0.0, min(bottoms) - 0.1 * span), min(1.0, max(tops) + 0.1 * span))  # an accuracy, standard error or not
    chart = Chart(f"accuracy against {x_label}", x_label, "accuracy", (low / 1.5, high * 1.5), y, log_x=True)
    chart.y_format = percent
    _labels(chart, points)
    for row, cost, i in points:
        colour, mean = COLOURS[i % len(COLOURS)], row.accuracy.mean
        chart.segment((cost, max(y[0], mean - _se(row))), (cost, min(y[1], mean + _se(row))), colour, 2)
        chart.dot(cost, mean, colour, f"{row.method}: {row.accuracy} at {number(cost)}", radius=5)
    return chart.svg()


def _se(row: Row) -> float:
    return 0.0 if np.isnan(row.accuracy.se) else row.accuracy.se


def _labels(chart: Chart, points: Sequence[tuple[Row, float, int]]) -> None:
    """Methods with their settings above the error bars, moved up where they would meet; the chart grows with them."""
    placed: list[tuple[float, float, float, list[str]]] = []  # middle, lowest baseline, half the width, lines
    bars = [(chart.px(c), *(chart.py(r.accuracy.mean + s * _se(r)) for s in (1, -1))) for r, c, _ in points]
    for row, cost, _ in (points := sorted(points, key=lambda point: point[0].accuracy.mean + _se(point[0]))):
        lines = label_lines(row.method)
        half = 3.7 * max(map(len, lines))
        x = min(max(chart.px(cost), chart.left + half), chart.width - half)
        low = chart.py(min(chart.y[1], row.accuracy.mean + _se(row))) - 7
        while any(
            abs(x - other) < half + wide and low > base - 13 * len(above) and base > low - 13 * len(lines)
            for other, base, wide, above in placed
        ) or any(abs(x - at) < half + 2 and low > top - 3 and low - 13 * len(lines) < end for at, top, end in bars):
            low -= 1
        placed.append((x, low, half, lines))
    chart.grow(max(13 * len(lines) - low for _, low, _, lines in placed))
    grown = chart.top - TOP
    for (row, cost, i), (x, low, _, lines) in zip(points, placed, strict=True):
        for k, line in enumerate(reversed(lines)):
            dx, dy = x - chart.px(cost), low + grown - 13 * k - chart.py(row.accuracy.mean)
            chart.text(cost, row.accuracy.mean, line, COLOURS[i % len(COLOURS)], dx=dx, dy=dy, anchor="middle")


def label_lines(method: str, width: int = 44) -> list[str]:
    """A method with all its settings, broken behind commas into lines of about ``width`` characters."""
    lines = [""]
    for part in re.findall(r"[^,]+,?|,", method):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def acceptance(records: Mapping[str, Sequence[RunLine]], colours: Mapping[str, str]) -> str | None:
    """Accepted moves by where they cut, as a fraction of the answer's length; one line per method with moves."""
    curves = {name: curve for name, group in records.items() if len(curve := acceptance_by_position(group)[0])}
    if not curves:
        return None
    chart = Chart("acceptance by cut position", "cut position / length of the answer", "accepted", (0, 1), (0, 1))
    chart.x_format = chart.y_format = percent
    for name in curves:
        rates, counts = acceptance_by_position(records[name])
        centres = (np.arange(len(rates)) + 0.5) / len(rates)
        seen = counts > 0
        chart.line(centres[seen].tolist(), rates[seen].tolist(), colours[name])
        for x, rate, count in zip(centres[seen], rates[seen], counts[seen], strict=True):
            tip = f"{name}: {percent(rate)} of {count} moves cut near {percent(x)}"
            chart.dot(float(x), float(rate), colours[name], tip, radius=2.5 + 2 * float(np.sqrt(count / counts.max())))
    return chart.svg()


def logp_over_moves(records: Mapping[str, Sequence[RunLine]], colours: Mapping[str, str]) -> str | None:
    """log p per token after every move of the last stage, averaged over answers; one line per method with moves.

    Earlier stages hold shorter answers, and answers differ in length: sums over them would show lengths.
    """
    curves: dict[str, np.ndarray[Any, Any]] = {}
    for name, group in records.items():
        traces = [[per_token(m) for m in _last_stage(moves_of(r))] for r in group]
        traces = [t for t in traces if t]
        if traces:
            length = max(map(len, traces))
            padded = np.array([t + [t[-1]] * (length - len(t)) for t in traces])
            curves[name] = padded.mean(axis=0)
    if not curves:
        return None
    low, high = min(c.min() for c in curves.values()), max(c.max() for c in curves.values())
    longest, margin = max(len(c) for c in curves.values()), 0.06 * (high - low)  # no line along the frame
    low, high = low - margin, high + margin
    chart = Chart(
        "log p per token over moves",
        "move of the last stage",
        "log p per token (nats)",
        (1, max(longest, 2)),
        (low, high),
    )
    chart.whole_x = True
    for name, curve in curves.items():
        chart.line(list(range(1, len(curve) + 1)), curve.tolist(), colours[name], 2)
        for i, value in enumerate(curve):
            chart.dot(
                i + 1, float(value), colours[name], f"{name}, move {i + 1}: {value:.3f} nats per token", radius=2.5
            )
    return chart.svg()


def per_token(move: Mapping[str, Any]) -> float:
    """log p of the answer after a move, divided by its tokens."""
    return float(move["logp"]) / max(int(move["length"]), 1)


def _last_stage(moves: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [m for m in moves if m.get("stage") == moves[-1].get("stage")]


def entropy_and_cuts(record: RunLine) -> str:
    """Entropy along the answer; below it one row per move, from its cut to the end of the answer it led to."""
    entropy = [float(h) for h in record["entropy"]]
    moves = [m for m in moves_of(record) if m.get("cut") is not None]
    length = max([len(entropy), *(int(m["length"]) for m in moves), 1])
    pitch = min(9.0, 150.0 / max(len(moves), 1))
    strip = pitch * len(moves) + 6 if moves else 0.0
    top = max([*entropy, 0.5]) * 1.08
    chart = Chart("entropy along the answer", "token", "entropy (nats)", (0, length), (0, top), 1080, 190 + strip)
    chart.strip, chart.whole_x = strip, True
    xs = [float(x) for i in range(len(entropy)) for x in (i, i + 1)]  # token i spans i … i + 1, a cut at i is its start
    steps = [h for h in entropy for _ in range(2)]
    chart.area(xs, steps, COLOURS[0])
    chart.line(xs, steps, COLOURS[0], 1.2)
    first = chart.floor + chart.bottom + pitch / 2
    for i, move in enumerate(moves):
        chart.marks.append(_move(i, move, chart.px(move["cut"]), chart.px(move["length"]), first + pitch * i, pitch))
    if moves:
        chart.marks.append(side_label("moves", first + pitch * (len(moves) - 1) / 2))
    return chart.svg()


def _move(i: int, move: Mapping[str, Any], x: float, end: float, y: float, pitch: float) -> str:
    word = "accepted" if move["accepted"] else "rejected"
    tip = f"move {i + 1}, cut at token {move['cut']}: {word}, log p {move['logp']:.2f}"
    circle = f'cx="{x:.1f}" cy="{y:.1f}" r="{max(1.6, min(3.6, pitch * 0.45)):.1f}"'
    if not move["accepted"]:
        return f'<circle {circle} fill="{PAPER}" stroke="{BAD}" stroke-width="1.3"><title>{tip}</title></circle>'
    ends = f'x1="{x:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    line = f'<line {ends} stroke="{GOOD}" stroke-opacity=".35" stroke-width="{max(pitch * 0.5, 1):.1f}"/>'
    return f'{line}<circle {circle} fill="{GOOD}"><title>{tip}</title></circle>'


def logp_trace(record: RunLine) -> str | None:
    """log p per token of the current answer after every move; stages, whose answers grow, are set apart."""
    moves = moves_of(record)
    if not moves:
        return None
    values = [per_token(m) for m in moves]
    margin = 0.06 * (max(values) - min(values))
    y = (min(values) - margin, max(values) + margin)
    chart = Chart("log p per token over moves", "move", "log p per token (nats)", (0.5, len(values) + 0.5), y)
    chart.whole_x = True
    for i in range(1, len(moves)):
        if moves[i].get("stage") != moves[i - 1].get("stage"):
            chart.segment((i + 0.5, chart.y[0]), (i + 0.5, chart.y[1]), MUTED, 1, 'stroke-dasharray="2 3"')
    chart.line(list(range(1, len(values) + 1)), values, INK, 1.4)
    for i, (move, value) in enumerate(zip(moves, values, strict=True)):
        word = "accepted" if move["accepted"] else "rejected"
        tip = (
            f"move {i + 1} (stage {move.get('stage', 0)}): {word}, log p {value:.3f} per token, {move['length']} tokens"
        )
        chart.dot(i + 1, value, GOOD if move["accepted"] else BAD, tip, radius=3.2, hollow=not move["accepted"])
    return chart.svg()


def ess(record: RunLine) -> str | None:
    """Effective sample size over positions; resamplings are marked."""
    positions, values, resampled = ess_curve(record)
    if not values:
        return None
    particles = float(particles_of(record) or max(values))
    chart = Chart("effective sample size", "token", "ESS", (0, max(positions) or 1), (0, particles))
    chart.whole_x = True
    chart.line(positions, values, COLOURS[2], 1.6)
    for x, y, hit in zip(positions, values, resampled, strict=True):
        tip = f"token {x}: ESS {y:.1f} of {particles:.0f}" + (", resampled" if hit else "")
        chart.dot(x, y, BAD if hit else COLOURS[2], tip, radius=3.4 if hit else 2)
    return chart.svg()


def genealogy(record: RunLine) -> str | None:
    """Who descends from whom: one column per resampling, the returned particle's line of descent in colour."""
    generations = ancestry(record)
    if not generations:
        return None
    particles = len(generations[0])
    chart = Chart(
        "genealogy", "resampling", "particle", (0, len(generations)), (-0.5, particles - 0.5), y_ticks=particles <= 64
    )
    chart.whole_x = True
    line = lineage(record)
    for t, ancestors in enumerate(generations):
        for child, parent in enumerate(ancestors):
            chart.segment((t, parent), (t + 1, child), FAINT, 0.9)
    for t in range(len(line) - 1):
        chart.segment((t, line[t]), (t + 1, line[t + 1]), COLOURS[1], 2.4)
    return chart.svg()
