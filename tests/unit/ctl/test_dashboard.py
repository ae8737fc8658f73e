"""The screen of `train watch`: it fits, it shows what matters, and it is given back."""

import io
import re

import pytest

from blyanctl import dashboard, live
from blyanctl.chart import Curve, Frame, bars, chart
from tests.unit.ctl.reports import stream

COLOUR = re.compile(r"\x1b\[[\d;]*m")


def board(items, colours=False):
    made = dashboard.Board(colours, 0.0)
    for number, item in enumerate(items):
        made.take(item, float(number))
    return made


@pytest.mark.parametrize("columns, rows", [(50, 14), (80, 24), (200, 60)])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_screen_fits_at_every_size(columns, rows, count):
    for colours in (False, True):
        shown = board(stream(count), colours).screen(columns, rows, 99.0)
        plain = [COLOUR.sub("", line) for line in shown]
        assert len(plain) <= rows
        assert max(map(len, plain)) <= columns, max(plain, key=len)
        assert colours == any("\x1b" in line for line in shown)


def test_the_screen_says_who_is_late_and_who_took_over():
    early = stream(0)[-1:]  # the round under way, told first
    text = "\n".join(board([*early, *stream(12)]).screen(120, 40, 12.0))
    assert "round 12 of 60, about 48.0 s left" in text
    assert "now: step 13 of 20, training, loss 1.71" in text
    assert "held out " in text and "unigram 3.31" in text
    assert re.search(r"…\S+04 .* behind \(3 of 12 rounds\), primary of 2", text)
    assert re.search(r"round 9: …\S+01 took over layer0\.trunk and 1 more", text)


def test_a_line_goes_through_its_points_and_labels_stand_beside_it():
    frame = Frame(0, 4, 1.0, 3.0, 2, 2)
    rows = chart([Curve([(0, 3.0), (4, 1.0)], "")], frame)
    assert rows == ["   2.50 ┤⢣ ", "   1.50 ┤ ⢣"], rows
    flat = chart([Curve([(0, 2.0)], "")], Frame(0, 0, 2.0, 2.0, 1, 1))
    assert len(flat) == 1  # a range of nothing is no division by nothing
    assert bars([None, 0.0, 1.0, 2.0], 3) == "▁▅█" and bars([], 3) == ""


def test_the_terminal_is_given_back(monkeypatch):
    def broken():
        yield from stream(1)
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        dashboard.show(broken(), out)
    text = out.getvalue()
    assert text.startswith(dashboard.ALTERNATE)
    last = text.split(dashboard.PLAIN)[1]
    assert "round 1 of 60" in last and dashboard.HOME not in last


def test_only_a_terminal_gets_a_screen(monkeypatch):
    out = io.StringIO()
    assert live.drawn("train.watch", out) is None
    out.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "dumb")
    assert live.drawn("train.watch", out) is None
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    drawn = live.drawn("train.watch", out)
    assert drawn is not None and drawn.params == {"live": True}
    monkeypatch.setenv("LINES", "5")
    assert live.drawn("train.watch", out) is None
    assert live.drawn("train.status", out) is None
