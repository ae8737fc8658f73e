"""The log of events: lines of JSON, bounded, and no reason to stop the daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blyand.config import load_config
from blyand.diary import MAX_TEXT, diary_of, open_diary
from blyand.home import Home


def test_one_line_per_event(tmp_path: Path) -> None:
    path = tmp_path / "events"
    for _ in range(2):  # a second start appends
        with open_diary(path, 1 << 20, 2) as note:
            note("connected", peer="12D3", address="/ip4/1.2.3.4/tcp/1\n{", way="in")
            note("blame", peer="12D3", reason="x" * 1000, points=3, seconds=0.5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["connected", "blame"] * 2
    assert lines[0]["address"].endswith("\n{") and lines[0]["time_ms"] > 1e12
    assert len(lines[1]["reason"]) == MAX_TEXT and lines[1]["points"] == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_files_are_bounded_and_rotated(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with open_diary(path, 2000, 3) as note:
        for number in range(200):
            note("stream", peer="p", number=number)
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["events", "events.1", "events.2"]
    assert all(one.stat().st_size <= 2000 for one in tmp_path.iterdir())
    newest = json.loads(path.read_text().splitlines()[-1])
    oldest = json.loads((tmp_path / "events.2").read_text().splitlines()[0])
    assert newest["number"] == 199 and oldest["number"] > 0


def test_a_disk_that_refuses_ends_the_diary_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_diary(tmp_path / "missing" / "events", 1000, 2) as note:
        note("connected")
        note("connected")
    assert caplog.text.count("no more events are written") == 1


def test_it_is_off_unless_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert diary_of(home, load_config())[0] is None
    with open_diary(None, 1, 1) as note:
        note("connected")
    named = load_config(flags={"log.events": "events.jsonl"})
    assert diary_of(home, named) == (tmp_path / "events.jsonl", 16 << 20, 4)
    absolute = load_config(flags={"log.events": "/var/log/blyan"})
    assert diary_of(home, absolute)[0] == Path("/var/log/blyan")
