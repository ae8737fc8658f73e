"""Curves for the terminal: lines of braille dots, eight to a cell, and rows of bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BARS = "▁▂▃▄▅▆▇█"
DOWN, ACROSS = 4, 2  # dots in a cell
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column
BLANK = 0x2800
LABEL_CELLS = 7
DOTTED = 4  # dots from one to the next

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points of one kind, ascending in x, and the colour that they are drawn in."""

    points: Sequence[Point]
    colour: str  # an SGR number; "" for none
    name: str = ""  # written at its right end; the line is dotted then


@dataclass(frozen=True)
class Frame:
    """The part of the plane that a chart shows, in so many cells."""

    left: float
    right: float
    low: float
    high: float
    width: int
    height: int

    def dot(self, point: Point) -> tuple[int, int]:
        """Return (column, row) of a point in dots, row 0 on top."""
        x = (point[0] - self.left) / ((self.right - self.left) or 1)
        y = (self.high - point[1]) / ((self.high - self.low) or 1)
        last_x, last_y = self.width * ACROSS - 1, self.height * DOWN - 1
        return (
            min(last_x, max(0, round(x * last_x))),
            min(last_y, max(0, round(y * last_y))),
        )


def chart(curves: Sequence[Curve], frame: Frame) -> list[str]:
    """Return a frame's rows with labels on the left; earlier curves lie on top."""
    cells = [[0] * frame.width for _ in range(frame.height)]
    inks = [[""] * frame.width for _ in range(frame.height)]
    for curve in reversed(curves):
        for column, row in _dots(curve.points, frame):
            if curve.name and column % DOTTED:
                continue
            x, y = column // ACROSS, row // DOWN
            cells[y][x] |= DOTS[row % DOWN][column % ACROSS]
            inks[y][x] = curve.colour
    names = {frame.dot(c.points[-1])[1] // DOWN: c.name for c in curves if c.name}
    rows = []
    for number, (line, ink) in enumerate(zip(cells, inks)):
        label = ""
        if number in (0, frame.height - 1, frame.height // 2):
            share = (number * DOWN + DOWN / 2) / (frame.height * DOWN)
            label = f"{frame.high - share * (frame.high - frame.low):.2f}"
        drawn = _inked(line, ink, names.get(number, ""))
        rows.append(f"{label:>{LABEL_CELLS}} ┤{drawn}")
    return rows


def _dots(points: Sequence[Point], frame: Frame) -> set[tuple[int, int]]:
    """Return the dots of a line through points."""
    marks = [frame.dot(point) for point in points]
    dots = set(marks)
    for (x0, y0), (x1, y1) in zip(marks, marks[1:]):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(1, steps):
            share = step / steps
            dots.add((round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))))
    return dots


def _inked(line: Sequence[int], inks: Sequence[str], name: str) -> str:
    """Return one row of cells, a name at its right end; a change of colour is an escape."""
    text, now = "", ""
    for cell, ink in zip(line[: len(line) - len(name)], inks):
        ink = ink if cell else now
        if ink != now:
            text += f"\x1b[0;{ink}m" if ink else "\x1b[0m"
            now = ink
        text += chr(BLANK + cell) if cell else " "
    return text + ("\x1b[0m" if now else "") + name


def bars(values: Sequence[float | None], width: int) -> str:
    """Return the newest values as a row of bars from 0 to their largest."""
    shown = list(values)[-width:]
    most = max((value for value in shown if value is not None), default=0.0)
    return "".join(
        " " if value is None else BARS[min(7, int(8 * value / most)) if most else 0]
        for value in shown
    )
