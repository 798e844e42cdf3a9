"""Plots of answers with matplotlib: every function draws on the axes it is given and returns them.

Records are dictionaries as ``Result.to_dict()`` gives them or as ``fastpower eval`` writes them; a ``Result`` will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpower.errors import FastpowerError
from fastpower.results.colours import BAD, COLOURS, GOOD, INK, MUTED
from fastpower.results.traces import (
    RunLine,
    acceptance_by_position,
    ancestry,
    by_method,
    ess_curve,
    lineage,
    moves_of,
    particles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _record(record: Any) -> RunLine:
    return record.to_dict() if hasattr(record, "to_dict") else record  # type: ignore[no-any-return]


def axes(ax: Axes | None, **size: Any) -> Axes:
    """``ax``, or new axes.

    Raises:
        FastpowerError: Matplotlib is missing; the message names what to install.
    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise FastpowerError("plots need matplotlib: `pip install '.[plots]'` in fastpower's checkout") from None
    new: Axes = plt.subplots(layout="constrained", **size)[1]
    return new


def finish(ax: Axes, title: str, x: str, y: str) -> Axes:
    """Title, labels and a quiet frame."""
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e6e9ef", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def plot_entropy(record: Any, ax: Axes | None = None) -> Axes:
    """Entropy (nats) along the answer, with the cuts of accepted (filled) and rejected (hollow) moves below it."""
    record = _record(record)
    ax = axes(ax, figsize=(9, 2.8))
    entropy = [float(h) for h in record["entropy"]]
    ax.stairs(entropy, color=COLOURS[0], fill=True, alpha=0.18)
    ax.stairs(entropy, color=COLOURS[0], linewidth=1.2)
    moves = [move for move in moves_of(record) if move.get("cut") is not None]
    depth = max([*entropy, 0.5]) * 0.35
    for accepted, colour, label in ((True, GOOD, "accepted"), (False, BAD, "rejected")):
        chosen = [
            (m["cut"], -depth * (i + 1) / len(moves)) for i, m in enumerate(moves) if bool(m["accepted"]) is accepted
        ]
        if chosen:
            x, y = zip(*chosen, strict=True)
            face = colour if accepted else "white"
            ax.scatter(x, y, s=14, facecolors=face, edgecolors=colour, linewidths=1, label=f"{label} cut")
    if moves:
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.legend(frameon=False, fontsize=8, loc="upper right")
        ax.set_yticks([tick for tick in ax.get_yticks() if tick >= 0])
    return finish(ax, "Entropy along the answer", "token", "entropy (nats)")


def plot_logp(record: Any, ax: Axes | None = None) -> Axes:
    """log p of the current answer after every move.

    Raises:
        ValueError: A method without moves.
    """
    record = _record(record)
    moves = moves_of(record)
    if not moves:
        raise ValueError(f"a record of method {record.get('method')!r} has no moves to plot")
    ax = axes(ax, figsize=(6, 3))
    x, y = np.arange(1, len(moves) + 1), np.array([float(m["logp"]) for m in moves])
    taken = np.array([bool(m["accepted"]) for m in moves])
    ax.plot(x, y, color=INK, linewidth=1.2)
    ax.scatter(x[taken], y[taken], s=22, color=GOOD, zorder=3, label="accepted")
    ax.scatter(x[~taken], y[~taken], s=22, facecolors="white", edgecolors=BAD, zorder=3, label="rejected")
    for i in range(1, len(moves)):
        if moves[i].get("stage") != moves[i - 1].get("stage"):
            ax.axvline(i + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return finish(ax, "log p over moves", "move", "log p (nats)")


def plot_acceptance(records: Iterable[Any], ax: Axes | None = None) -> Axes:
    """Acceptance rate by cut position as a fraction of the answer; one line per method with moves."""
    ax = axes(ax, figsize=(6, 3))
    for i, (name, group) in enumerate(by_method([_record(r) for r in records]).items()):
        rates, counts = acceptance_by_position(group)
        if len(rates):
            seen = counts > 0
            centres = (np.arange(len(rates)) + 0.5) / len(rates)
            ax.plot(centres[seen], rates[seen], marker="o", color=COLOURS[i % len(COLOURS)], label=name)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    if ax.lines:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return finish(ax, "Acceptance by cut position", "cut position / length", "accepted")


def plot_ess(record: Any, ax: Axes | None = None) -> Axes:
    """Effective sample size over positions, resamplings marked.

    Raises:
        ValueError: A method without particles.
    """
    record = _record(record)
    positions, values, resampled = ess_curve(record)
    if not values:
        raise ValueError(f"a record of method {record.get('method')!r} has no effective sample sizes to plot")
    ax = axes(ax, figsize=(6, 3))
    ax.plot(positions, values, color=COLOURS[2], marker=".", linewidth=1.4)
    hit = np.array(resampled)
    ax.scatter(np.array(positions)[hit], np.array(values)[hit], color=BAD, zorder=3, s=24, label="resampled")
    ax.set_ylim(0, float(particles_of(record) or max(values)) * 1.03)
    if hit.any():
        ax.legend(frameon=False, fontsize=8)
    return finish(ax, "Effective sample size", "token", "ESS")


def plot_genealogy(record: Any, ax: Axes | None = None) -> Axes:
    """Ancestors at every resampling, the answer's line of descent in colour.

    Raises:
        ValueError: There was no resampling.
    """
    record = _record(record)
    generations = ancestry(record)
    if not generations:
        raise ValueError(f"a record of method {record.get('method')!r} was never resampled: nothing to plot")
    ax = axes(ax, figsize=(6, 3.4))
    for t, ancestors in enumerate(generations):
        for child, parent in enumerate(ancestors):
            ax.plot([t, t + 1], [parent, child], color="#b8c0cc", linewidth=0.8)
    ax.set_xticks(range(len(generations) + 1))
    line = lineage(record)
    if line:
        ax.plot(range(len(line)), line, color=COLOURS[1], linewidth=2.2, label="the answer's line")
        ax.legend(frameon=False, fontsize=8)
    return finish(ax, "Genealogy", "resampling", "particle")
