"""The report's charts: what a run and an answer look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastpower.evaluate.report.svg import Chart, number, side_label
from fastpower.evaluate.statistics import Record
from fastpower.evaluate.summary import Row
from fastpower.results.colours import BAD, COLOURS, GOOD, INK, MUTED
from fastpower.results.traces import acceptance_by_position, ancestry, ess_curve, lineage, moves_of, particles_of


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
    y = (max(0.0, min(bottoms) - 0.1 * span), max(tops) + 0.3 * span)  # room for the labels
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
    """Names above the error bars, moved up where they would meet; settings in brackets are left to the table."""
    placed: list[tuple[float, float, float]] = []
    for row, cost, i in sorted(points, key=lambda point: point[0].accuracy.mean + _se(point[0])):
        name, bracket, _ = row.method.partition("(")
        text = f"{name}(…)" if bracket else name
        half = 3.7 * len(text)
        x = min(max(chart.px(cost), chart.left + half), chart.width - half)
        top = chart.py(row.accuracy.mean + _se(row)) - 5
        while any(abs(x - px) < half + other and abs(top - py) < 13 for px, py, other in placed):
            top -= 1
        placed.append((x, top, half))
        dx, dy = x - chart.px(cost), top - chart.py(row.accuracy.mean)
        chart.text(cost, row.accuracy.mean, text, COLOURS[i % len(COLOURS)], dx=dx, dy=dy, anchor="middle")


def acceptance(records: Mapping[str, Sequence[Record]], colours: Mapping[str, str]) -> str | None:
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


def logp_over_moves(records: Mapping[str, Sequence[Record]], colours: Mapping[str, str]) -> str | None:
    """log p after every move of the last stage, averaged over answers; one line per method with moves."""
    curves: dict[str, np.ndarray[Any, Any]] = {}
    for name, group in records.items():
        traces = [[m["logp"] for m in _last_stage(moves_of(r))] for r in group]
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
    chart = Chart("log p over moves", "move of the last stage", "mean log p (nats)", (1, max(longest, 2)), (low, high))
    chart.whole_x = True
    for name, curve in curves.items():
        chart.line(list(range(1, len(curve) + 1)), curve.tolist(), colours[name], 2)
        for i, value in enumerate(curve):
            chart.dot(i + 1, float(value), colours[name], f"{name}, move {i + 1}: {value:.2f} nats", radius=2.5)
    return chart.svg()


def _last_stage(moves: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [m for m in moves if m.get("stage") == moves[-1].get("stage")]


def entropy_and_cuts(record: Record) -> str:
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
        return f'<circle {circle} fill="#fff" stroke="{BAD}" stroke-width="1.3"><title>{tip}</title></circle>'
    ends = f'x1="{x:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    line = f'<line {ends} stroke="{GOOD}" stroke-opacity=".35" stroke-width="{max(pitch * 0.5, 1):.1f}"/>'
    return f'{line}<circle {circle} fill="{GOOD}"><title>{tip}</title></circle>'


def logp_trace(record: Record) -> str | None:
    """log p of the current answer after every move; stages are set apart."""
    moves = moves_of(record)
    if not moves:
        return None
    values = [float(m["logp"]) for m in moves]
    margin = 0.06 * (max(values) - min(values))
    y = (min(values) - margin, max(values) + margin)
    chart = Chart("log p over moves", "move", "log p (nats)", (0.5, len(values) + 0.5), y)
    chart.whole_x = True
    for i in range(1, len(moves)):
        if moves[i].get("stage") != moves[i - 1].get("stage"):
            chart.segment((i + 0.5, chart.y[0]), (i + 0.5, chart.y[1]), MUTED, 1, 'stroke-dasharray="2 3"')
    chart.line(list(range(1, len(values) + 1)), values, INK, 1.4)
    for i, (move, value) in enumerate(zip(moves, values, strict=True)):
        word = "accepted" if move["accepted"] else "rejected"
        tip = f"move {i + 1} (stage {move.get('stage', 0)}): {word}, log p {value:.2f}, {move['length']} tokens"
        chart.dot(i + 1, value, GOOD if move["accepted"] else BAD, tip, radius=3.2, hollow=not move["accepted"])
    return chart.svg()


def ess(record: Record) -> str | None:
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


def genealogy(record: Record) -> str | None:
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
            chart.segment((t, parent), (t + 1, child), "#b8c0cc", 0.9)
    for t in range(len(line) - 1):
        chart.segment((t, line[t]), (t + 1, line[t + 1]), COLOURS[1], 2.4)
    return chart.svg()
