"""The page of `train report`: whole in itself, and nothing in it can break out."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blyanctl import live
from blyanctl.page import page
from blyanctl.plot import Line, plot
from tests.unit.ctl.reports import whole


class Nesting(HTMLParser):
    """Fails where a tag is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert name not in ("src", "href") and "url(" not in (value or "")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    nesting = Nesting()
    nesting.feed(html)
    assert not nesting.open
    assert not nesting.tags & {"script", "link", "iframe", "img", "b>"}
    return " ".join(nesting.text)


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_page_is_whole_and_says_what_happened(count):
    text = read(page(whole(count)))
    assert f"demo <b>: {count} of 60 rounds" in text and "corpus & more" in text
    assert "Loss, nats per token" in text and "Settings" in text
    if count == 40:
        assert "Behind" in text and "Takeovers" in text and "layer1.trunk" in text
        assert "unigram 3.31" in text and "round 12: 3 groups without it" in text
        assert re.search(r"round 1: held-out text 4\.97, training text", text)


def test_what_others_wrote_stays_text():
    report = whole(3)
    evil = "<script>alert(1)</script>"
    report["model"] = report["dataset"] = report["outcome"] = evil
    report["settings"][0]["value"] = evil
    report["history"][1]["takeovers"] = [{"group": evil, "rank": 1, "peer_id": evil}]
    report["learners"][0]["peer_id"] = evil
    read(page(report))


def test_a_plot_without_points_or_range():
    assert "nothing" in plot([Line("a", [], "a")], 3, str)
    read(plot([Line("a", [(1, 0.0)], "a")], 0, str, from_zero=True))
    read(plot([Line("a", [(1, 5e8), (2, 5e8)], "a")], 9, str, base=1024.0))


def test_the_page_goes_where_it_is_wanted(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = whole(2)
    assert live.written("train.report", report, "-").startswith("<!doctype html>")
    said = live.written("train.report", report, None)
    (made,) = tmp_path.glob("*.html")
    assert said == f"written to {made.name}" and made.read_text() == page(report)
