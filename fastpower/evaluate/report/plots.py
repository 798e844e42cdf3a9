"""Plots of runs with matplotlib: accuracy against cost, and the files of ``fastpower plot``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpower.evaluate.runs import check_writable, read_config, read_records
from fastpower.evaluate.summary import Row, summarise
from fastpower.results.colours import COLOURS
from fastpower.results.plots import (
    axes,
    finish,
    plot_acceptance,
    plot_entropy,
    plot_ess,
    plot_genealogy,
    plot_logp,
)
from fastpower.results.traces import ancestry, by_method, ess_curve, moves_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_cost(rows: Sequence[Row], cost: str = "decoded_tokens", ax: Axes | None = None) -> Axes:
    """Accuracy ± standard error of the rows of ``summarise`` against ``decoded_tokens`` or ``wall_seconds``."""
    if cost not in ("decoded_tokens", "wall_seconds"):
        raise ValueError(f"cost must be 'decoded_tokens' or 'wall_seconds', got {cost!r}")
    ax = axes(ax, figsize=(8, 3.4))
    points = [(i, row, getattr(row, cost)) for i, row in enumerate(rows) if getattr(row, cost)]
    for i, row, total in points:
        x = total / row.answers if cost == "wall_seconds" else total
        mean, se = row.accuracy.mean, 0.0 if np.isnan(row.accuracy.se) else row.accuracy.se
        bar = [[min(se, mean)], [min(se, 1.0 - mean)]]  # an accuracy is within 0 and 1, standard error or not
        ax.errorbar(
            x, mean, yerr=bar, fmt="o", color=COLOURS[i % len(COLOURS)], capsize=2, label=row.method, clip_on=False
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")  # 20, not 2 × 10¹
    ax.xaxis.set_minor_formatter(_first_digits)
    ax.margins(x=0.12)
    if points:
        low, high = ax.get_ylim()
        ax.set_ylim(max(0.0, low), min(1.0, high))
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    label = "tokens decoded per answer" if cost == "decoded_tokens" else "seconds per answer, all together"
    return finish(ax, f"Accuracy against {label.split(' per')[0]}", label, "accuracy")


def _first_digits(value: float, _: float) -> str:
    """Labels of a logarithmic axis between its decades: 2, 3 and 5 of each; with all nine it is crowded."""
    return f"{value:g}" if f"{value:e}"[0] in "235" else ""


def plot_run(path: str | Path, folder: str | Path | None = None, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw a run folder: overall plots, and those of the first answer of every method. Files go to RUN/plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    config = read_config(path)["config"]
    records = read_records(path, timings=True, answers=True)
    if not records:
        raise ValueError(f"{str(path)!r} holds no finished record yet")
    target = Path(folder) if folder is not None else Path(path) / "plots"
    check_writable(target)
    rows = summarise(records, chains=config.get("chains"), match_best_of_n=bool(config.get("match_best_of_n")))
    drawn: list[tuple[str, Axes]] = [("accuracy_tokens", plot_cost(rows))]
    if any(row.wall_seconds for row in rows):
        drawn.append(("accuracy_seconds", plot_cost(rows, "wall_seconds")))
    if any(moves_of(r) for r in records):
        drawn.append(("acceptance", plot_acceptance(records)))
    for name, group in by_method(records).items():
        stem = "".join(c if c.isalnum() else "_" for c in name).strip("_")
        drawn.append((f"entropy_{stem}", plot_entropy(group[0])))
        if moves_of(group[0]):
            drawn.append((f"logp_{stem}", plot_logp(group[0])))
        if ess_curve(group[0])[1]:
            drawn.append((f"ess_{stem}", plot_ess(group[0])))
        if ancestry(group[0]):
            drawn.append((f"genealogy_{stem}", plot_genealogy(group[0])))
    files = []
    for stem, ax in drawn:
        figure: Any = ax.get_figure()
        for suffix in formats:
            file = target / f"{stem}.{suffix}"
            figure.savefig(file, dpi=150)
            files.append(file)
        plt.close(figure)
    return files
