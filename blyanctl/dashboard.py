"""`train watch` on a terminal: one screen that is drawn again as the run goes on.

It takes the alternate screen and gives it back at the end, with the last picture. On anything that is no terminal `live.rounds` prints the lines alone.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from blyan_proto.rpc.spec import JsonObject
from blyanctl.chart import LABEL_CELLS, Curve, Frame, Point, bars, chart
from blyanctl.render import cell, duration, size

TRAIN, HELD_OUT, SIMPLE, FAINT, WARN = "36", "32;1", "2", "2", "33;1"
ALTERNATE, PLAIN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
LEAST_CELLS, LEAST_ROWS = 50, 14
SMALL_ROWS = 26  # below it the curves matter more than the figures
MOST_ROWS = 18  # of the chart
PEER_CHARACTERS = 8
EDGE = 0.04  # of the range, above and below the curves


def fits(out: TextIO) -> bool:
    """True where a screen can be drawn: a terminal that knows how, and is large enough."""
    if not out.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return False
    columns, rows = shutil.get_terminal_size()
    return columns >= LEAST_CELLS and rows >= LEAST_ROWS


class Board:
    """What has come so far, and how it is shown."""

    def __init__(self, colours: bool, now: float) -> None:
        self._colours = colours
        self._began = now
        self._first: JsonObject = {}
        self._closed: list[JsonObject] = []
        self._now: JsonObject | None = None
        self._seen = 0  # rounds that were closed when the watch began

    def take(self, item: JsonObject, now: float) -> None:
        """Take one item of the stream."""
        if item["under_way"] is not None:
            if self._now is None:
                self._seen, self._began = len(self._closed), now
            self._now = item
        elif item["round"]:
            self._closed.append(item)
        else:
            self._first = item

    def screen(self, columns: int, rows: int, now: float) -> list[str]:
        """Return at most `rows` lines of at most `columns` cells."""
        head = self._head(columns, now)
        figures = self._figures(columns)
        if rows < SMALL_ROWS:
            figures = figures[:2]
        room = rows - len(head) - len(figures) - 4
        learners = self._learners(columns)[: max(2, min(room // 3, 9))]
        events = self._events(columns)[: max(1, min(room // 4, 6))]
        used = len(head) + len(figures) + len(learners) + len(events) + 3
        height = max(3, min(MOST_ROWS, rows - used))
        return [
            *head,
            *self._losses(columns, height),
            *figures,
            "",
            *learners,
            *events,
        ][:rows]

    def _ink(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text

    def _newest(self) -> JsonObject:
        return self._closed[-1] if self._closed else self._first

    def _head(self, columns: int, now: float) -> list[str]:
        newest = self._newest()
        done, whole = newest["round"], max(1, newest["rounds"])
        text = f"run {newest['run'][:16]}  round {done} of {whole}"
        since = done - self._seen
        if since > 0 and done < whole:
            left_s = (now - self._began) / since * (whole - done)
            text += f", about {duration(left_s)} left"
        gauge = max(10, columns - len(text) - 4)
        full = gauge * done // whole
        lines = [f"{text}  {'█' * full}{'░' * (gauge - full)}"]
        under_way = self._now["under_way"] if self._now is not None else None
        if under_way is not None and done < whole:
            step, steps = under_way["step"], under_way["steps"]
            at = f"step {step} of {steps}, " if step is not None else ""
            said = f"{at}{cell('doing', under_way['doing'])}"
            far = under_way["between_bytes"]
            if far:
                near = size(under_way["within_bytes"])
                said += f"; {near} within the region, {size(far)} to others"
            lines.append(self._ink(_cut(f"now: {said}", columns), FAINT))
        return lines

    def _losses(self, columns: int, height: int) -> list[str]:
        held_out = _points([self._first, *self._closed], "held_out_loss")
        train = _points(self._closed, "train_loss")
        simple = self._first.get("baselines") or {}
        title = "nats per token:"
        if held_out:
            title += self._ink(f" held out {held_out[-1][1]:.4f}", HELD_OUT)
        if train:
            title += self._ink(f" train {train[-1][1]:.4f}", TRAIN)
        values = [y for _, y in held_out + train]
        if not values:
            return [title, "", "  no round is closed yet", ""]
        low, high = min(values), max(values)
        edge = max(0.01, EDGE * (high - low))
        whole = max(1, self._newest()["rounds"])
        width = columns - LABEL_CELLS - 3
        frame = Frame(0, whole, low - edge, high + edge, width, height)
        lines = [
            Curve([(0, value), (whole, value)], SIMPLE, f"{name} {value:.2f}")
            for name, value in simple.items()
            if frame.low < value < frame.high
        ]
        curves = [Curve(held_out, HELD_OUT), Curve(train, TRAIN), *lines]
        if not self._colours:
            curves = [Curve(curve.points, "", curve.name) for curve in curves]
        axis = f"{'0':>{LABEL_CELLS + 3}}{whole:>{width - 1}}"
        return [title, *chart(curves, frame), self._ink(axis, FAINT)]

    def _figures(self, columns: int) -> list[str]:
        """Return one line per figure of the rounds: its newest value, then bars."""
        if not self._closed:
            return []
        rows = (
            ("tokens/s", "tokens_per_s", lambda v: f"{v:,.0f}"),
            ("up", "bytes_up", size),
            ("down", "bytes_down", size),
            ("time", "seconds", duration),
            ("ratio", "compression_ratio", lambda v: f"{v:.0f}x"),
        )
        lines = []
        for name, key, told in rows:
            values = [one[key] for one in self._closed]
            newest = "-" if values[-1] is None else told(values[-1])
            lines.append(f"{name:>8} {newest:>10}  {bars(values, columns - 22)}")
        return lines

    def _learners(self, columns: int) -> list[str]:
        if not self._closed:
            return []
        newest = self._closed[-1]
        parts = newest["parts"]
        late: dict[str, int] = {}
        for one in self._closed:
            for part in one["parts"]:
                peer = part["peer_id"]
                late[peer] = late.get(peer, 0) + bool(part["missed"])
        led = {p["peer_id"]: p["groups"] for p in newest["primaries"]}
        head = f"{newest['learners']} learners, {newest['contributions']} deltas, "
        head += f"{newest['blocks']} groups, {newest['peers']} peers connected"
        lines = [_cut(head, columns)]
        for part in parts:
            peer, times = part["peer_id"], late[part["peer_id"]]
            said = f"  …{peer[-PEER_CHARACTERS:]} {part['tokens']:>9,} tokens"
            said += f" {part['listed']:>4} deltas"
            if times:
                said += f", {'behind' if part['missed'] else 'was behind'}"
                said += f" ({times} of {len(self._closed)} rounds)"
            if part["clipped"]:
                said += f", {part['clipped']} clipped"
            said += f", primary of {led.get(peer, 0)}"
            line = _cut(said, columns)
            lines.append(self._ink(line, WARN) if part["missed"] else line)
        return lines

    def _events(self, columns: int) -> list[str]:
        """Return the newest takeovers, newest first, those of one rank together."""
        lines = []
        for one in reversed(self._closed):
            taken: dict[str, list[str]] = {}
            for takeover in one["takeovers"]:
                taken.setdefault(takeover["peer_id"], []).append(takeover["group"])
            for peer, groups in taken.items():
                more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
                said = f"round {one['round']}: …{peer[-PEER_CHARACTERS:]} took over "
                lines.append(_cut(f"{said}{groups[0]}{more}", columns))
        return [self._ink(line, WARN) for line in lines] or ["no takeovers"]


def _points(items: Sequence[JsonObject], key: str) -> list[Point]:
    return [(i["round"], i[key]) for i in items if i and i[key] is not None]


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: columns - 1] + "…"


@contextmanager
def _whole_screen(out: TextIO) -> Iterator[None]:
    out.write(ALTERNATE)
    try:
        yield
    finally:
        out.write(PLAIN)
        out.flush()


def show(items: Iterable[JsonObject], out: TextIO) -> None:
    """Draw the run until it ends or the watcher leaves; the last picture stays."""
    board = Board("NO_COLOR" not in os.environ, time.monotonic())
    lines: list[str] = []
    try:
        with _whole_screen(out):
            for item in items:
                board.take(item, time.monotonic())
                columns, rows = shutil.get_terminal_size()
                lines = board.screen(columns, rows, time.monotonic())
                text = (REST_OF_LINE + "\n").join(lines)
                out.write(HOME + text + REST_OF_LINE + REST_OF_SCREEN)
                out.flush()
    finally:
        out.write("".join(line + "\n" for line in lines))
        out.flush()
