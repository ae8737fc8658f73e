"""Plots for a page: SVG that stretches to any width, with labels beside it as text.

Lines keep their width however the plot is stretched; a column of each round says its
numbers when it is pointed at. No script, nothing from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 1000.0, 240.0  # units of the drawing
TICKS = 4
EDGE = 0.05  # of the range, above and below

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: what it is called, its points ascending in x, its class of colour."""

    name: str
    points: Sequence[Point]
    colour: str  # a, b, c …, as the page's style names them


@dataclass(frozen=True)
class Level:
    """A level to compare with: a dashed line with its name."""

    name: str
    value: float


def plot(
    lines: Sequence[Line],
    rounds: int,
    told: Callable[[float], str],
    levels: Sequence[Level] = (),
    from_zero: bool = False,
    base: float = 10.0,
) -> str:
    """Return a figure over rounds 0 to `rounds`; `told` writes a value of its y axis.

    `base`: of the units of that axis, 1024 for bytes.
    """
    values = [y for line in lines for _, y in line.points]
    if not values:
        return '<p class="none">nothing to draw yet</p>'
    low, high = min(values), max(values)
    edge = EDGE * ((high - low) or abs(high) or 1.0)
    low, high = 0.0 if from_zero else low - edge, high + edge
    span = (high - low) or 1.0

    def x(round: float) -> float:
        return WIDE * round / max(1, rounds)

    def y(value: float) -> float:
        return HIGH * (high - value) / span

    unit = base ** math.floor(math.log(span, base)) if base != 10.0 else 1.0
    ticks = [unit * tick for tick in _ticks(low / unit, high / unit)]
    drawn = [
        f'<line class="grid" x1="0" x2="{WIDE:g}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        for t in ticks
    ]
    shown = [level for level in levels if low < level.value < high]
    drawn += [
        f'<line class="level" x1="0" x2="{WIDE:g}" y1="{y(one.value):.1f}" '
        f'y2="{y(one.value):.1f}"/>'
        for one in shown
    ]
    for line in lines:
        if len(line.points) == 1:
            line = Line(line.name, [*line.points, *line.points], line.colour)
        places = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        drawn.append(f'<polyline class="{line.colour}" points="{places}"/>')
    drawn += _columns(lines, x, told)
    labels = [
        f'<span style="top:{100 * y(t) / HIGH:.1f}%">{escape(told(t))}</span>'
        for t in ticks
    ]
    names = [
        f'<span style="top:{100 * y(one.value) / HIGH:.1f}%">{escape(one.name)}</span>'
        for one in shown
    ]
    return (
        f'<div class="plot"><div class="ys">{"".join(labels)}</div>'
        f'<div class="area"><svg viewBox="0 0 {WIDE:g} {HIGH:g}" '
        f'preserveAspectRatio="none" role="img">{"".join(drawn)}</svg>'
        f'<div class="levels">{"".join(names)}</div></div>'
        f'<div class="xs"><span>0</span><span>round {rounds}</span></div></div>'
    )


def legend(lines: Sequence[Line]) -> str:
    """Return the names of lines with their colours."""
    keys = (
        f'<span><i class="{line.colour}"></i>{escape(line.name)}</span>'
        for line in lines
        if line.points
    )
    return f'<p class="legend">{"".join(keys)}</p>'


def _columns(
    lines: Sequence[Line], x: Callable[[float], float], told: Callable[[float], str]
) -> list[str]:
    """Return an unseen column for each round that says what was measured in it."""
    at: dict[float, list[str]] = {}
    for line in lines:
        for round, value in line.points:
            at.setdefault(round, []).append(f"{line.name} {told(value)}")
    width = x(1)
    return [
        f'<rect class="at" x="{x(round) - width / 2:.1f}" y="0" width="{width:.1f}" '
        f'height="{HIGH:g}"><title>{escape(f"round {round:g}: " + ", ".join(said))}'
        "</title></rect>"
        for round, said in sorted(at.items())
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Return round values inside a range, about TICKS of them."""
    step = 10 ** math.floor(math.log10((high - low) / TICKS or 1.0))
    for factor in (1, 2, 5, 10):
        if (high - low) / (factor * step) <= TICKS + 1:
            step *= factor
            break
    first = math.ceil(low / step)
    count = int((high - first * step) / step + 1e-9) + 1
    return [(first + number) * step for number in range(max(0, count))]


def strip(
    names: Sequence[str], rows: Sequence[Sequence[int]], rounds: Sequence[int]
) -> str:
    """Return one row of cells per name; a cell is the darker the more it counts."""
    most = max((count for row in rows for count in row), default=1)
    lines = []
    for name, row in zip(names, rows):
        width = WIDE / max(1, len(row))
        cells = "".join(
            f'<rect class="late" x="{number * width:.1f}" y="0" width="{width:.1f}" '
            f'height="10" opacity="{0.25 + 0.75 * count / max(1, most):.2f}"><title>'
            f"round {rounds[number]}: {count} groups without it</title></rect>"
            for number, count in enumerate(row)
            if count
        )
        lines.append(
            f"<dt>{escape(name)}</dt><dd>"
            f'<svg viewBox="0 0 {WIDE:g} 10" preserveAspectRatio="none">'
            f"{cells}</svg></dd>"
        )
    return f'<dl class="strip">{"".join(lines)}</dl>'
