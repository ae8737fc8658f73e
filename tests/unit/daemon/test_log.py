"""Log records: one line each, whatever is in them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from blyand.log import broken, context, fields, logging_to

log = logging.getLogger("blyand.test")


def lines(path: Path, as_json: bool = False, **bounds: int) -> list[str]:
    sizes = {"file_bytes": 1 << 20, "files": 2, **bounds}
    with logging_to(path, level="info", as_json=as_json, **sizes):
        log.debug("not written")
        with context(peer="12D3"):
            log.info("a\nb\x9b", extra=fields(block=b"\x01\xff", note="x y", empty=""))
        broken(log, "oops", ZeroDivisionError("by\nzero"))
    return path.read_text().splitlines()


def test_text_has_one_line_per_record(tmp_path: Path) -> None:
    first, second = lines(tmp_path / "log")
    assert first.endswith(
        r'INFO blyand.test a\nb\u009b peer=12D3 block=01ff note="x y" empty=""'
    )
    assert " ERROR blyand.test BROKEN oops trace=" in second and "by" in second


def test_json_has_one_object_per_record(tmp_path: Path) -> None:
    first, second = map(json.loads, lines(tmp_path / "log", as_json=True))
    assert (first["message"], first["block"], first["peer"]) == (
        "a\nb\x9b",
        "01ff",
        "12D3",
    )
    assert second["level"] == "error" and "ZeroDivisionError" in second["trace"]


def test_the_file_is_bounded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    with logging_to(path, level="info", as_json=False, file_bytes=1000, files=3):
        for number in range(100):
            log.info("number %d", number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 3000
    assert capfd.readouterr().err.count("\n") == 100
