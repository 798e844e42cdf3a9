"""Small charts as inline SVG: scales, axes, and marks that carry their own tooltips. No dependencies, no scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from fastpower.results.colours import GRID, MUTED, PAPER

TOP = 14.0  #: pixels above the plot area


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], at least two where low < high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [i * step for i in range(first, first + 100) if i * step <= high + step * 1e-9]
    return found if len(found) > 1 else [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 · 10^n inside [low, high], thinned to a readable number; linear ones where the range is short."""
    if high < 5 * low:
        return [value for value in ticks(low, high) if value > 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(found) <= 8:
            break
    return found[:: math.ceil(len(found) / 8)]


def number(value: float) -> str:
    """A tick label: 0.25, 12, 3.4k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}"


@dataclass
class Chart:
    """A plot area with two scales. Marks are appended in data coordinates; ``svg()`` gives the element."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 520
    height: float = 260
    log_x: bool = False
    y_ticks: bool = True
    whole_x: bool = False  #: ticks at whole numbers only
    x_format: Callable[[float], str] = number
    y_format: Callable[[float], str] = number
    left: float = 60
    right: float = 24  #: room for the last tick's label
    top: float = TOP
    bottom: float = 40
    strip: float = 0  #: room left free below the axis
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y = _widened(*self.x), _widened(*self.y)

    @property
    def floor(self) -> float:
        """The axis, in pixels from the top."""
        return self.height - self.strip - self.bottom

    def grow(self, room: float) -> None:
        """Add ``room`` pixels above the plot area, which keeps its size; before marks are added."""
        self.top, self.height = self.top + max(0.0, room), self.height + max(0.0, room)

    def px(self, x: float) -> float:
        low, high = self.x
        if self.log_x:
            low, high, x = math.log(low), math.log(high), math.log(max(x, 1e-12))
        return self.left + (x - low) / (high - low) * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        low, high = self.y
        return self.floor - (y - low) / (high - low) * (self.floor - self.top)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float = 1.6, extra: str = "") -> None:
        points = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in zip(xs, ys, strict=True))
        self.marks.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round" {extra}/>'
        )

    def area(self, xs: Sequence[float], ys: Sequence[float], colour: str, opacity: float = 0.14) -> None:
        if not xs:
            return
        base = self.py(self.y[0])
        points = " ".join(f"{self.px(x):.1f},{self.py(y):.1f}" for x, y in zip(xs, ys, strict=True))
        points = f"{self.px(xs[0]):.1f},{base:.1f} {points} {self.px(xs[-1]):.1f},{base:.1f}"
        self.marks.append(f'<polygon points="{points}" fill="{colour}" fill-opacity="{opacity}" stroke="none"/>')

    def dot(self, x: float, y: float, colour: str, tip: str = "", *, radius: float = 4, hollow: bool = False) -> None:
        paint = f'fill="{PAPER}" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
        at = f'cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="{radius}"'
        self.marks.append(f"<circle {at} {paint}><title>{escape(tip)}</title></circle>")

    def segment(
        self, a: tuple[float, float], b: tuple[float, float], colour: str, width: float = 1.4, extra: str = ""
    ) -> None:
        ends = f'x1="{self.px(a[0]):.1f}" y1="{self.py(a[1]):.1f}" x2="{self.px(b[0]):.1f}" y2="{self.py(b[1]):.1f}"'
        self.marks.append(f'<line {ends} stroke="{colour}" stroke-width="{width}" {extra}/>')

    def text(
        self, x: float, y: float, text: str, colour: str, dx: float = 0, dy: float = 0, anchor: str = "start"
    ) -> None:
        self.marks.append(
            f'<text x="{self.px(x) + dx:.1f}" y="{self.py(y) + dy:.1f}" fill="{colour}" text-anchor="{anchor}" '
            f'class="label">{escape(text)}</text>'
        )

    def _axes(self) -> str:
        parts = []
        floor, wall = self.floor, self.width - self.right
        for value in ticks(*self.y) if self.y_ticks else []:
            at = self.py(value)
            parts.append(f'<line x1="{self.left}" x2="{wall}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>')
            label = escape(self.y_format(value))
            parts.append(f'<text x="{self.left - 7}" y="{at + 3.5:.1f}" text-anchor="end" class="tick">{label}</text>')
        for value in log_ticks(*self.x) if self.log_x else ticks(*self.x):
            if self.whole_x and value != round(value):
                continue
            at = self.px(value)
            label = escape(self.x_format(value))
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}" stroke="{MUTED}"/>')
            parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle" class="tick">{label}</text>')
        parts.append(f'<line x1="{self.left}" x2="{wall}" y1="{floor}" y2="{floor}" stroke="{MUTED}"/>')
        middle = f'x="{(self.left + wall) / 2:.1f}" y="{floor + self.bottom - 6:.1f}" text-anchor="middle"'
        parts.append(f'<text {middle} class="axis">{escape(self.x_label)}</text>')
        parts.append(side_label(self.y_label, (self.top + floor) / 2))
        return "".join(parts)

    def svg(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(self.title)}">'
            f"{self._axes()}{''.join(self.marks)}</svg>"
        )


def side_label(text: str, middle: float) -> str:
    """Text along the left edge, reading upwards, centred at ``middle`` pixels from the top."""
    at = f'x="13" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 13 {middle:.1f})"'
    return f'<text {at} class="axis">{escape(text)}</text>'


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 0.5
    return low - margin, high + margin
