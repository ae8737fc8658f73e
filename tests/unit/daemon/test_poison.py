"""The poison box: bounded memory, bounded disk, never fatal (DEC-C2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from blyand import poison
from blyand.poison import PoisonBox


def test_an_item_is_remembered_kept_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = PoisonBox(tmp_path / "poison")
    assert b"id" not in box
    for _ in range(3):
        box.put("block", b"id", b"raw bytes", ZeroDivisionError("oops"))
    assert b"id" in box
    (kept,) = (tmp_path / "poison").iterdir()
    assert kept.read_bytes() == b"raw bytes" and kept.stat().st_mode & 0o777 == 0o600
    assert caplog.text.count("BROKEN on a foreign block") == 1
    assert "ZeroDivisionError: oops" in caplog.text


def test_memory_and_disk_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison, "REMEMBERED", 3)
    monkeypatch.setattr(poison, "MAX_FILES", 2)
    monkeypatch.setattr(poison, "MAX_FILE_BYTES", 4)
    box = PoisonBox(tmp_path)
    for number in range(6):
        identity = bytes([number])
        box.put("delta", identity, identity * 9, ValueError())
    assert [number for number in range(6) if bytes([number]) in box] == [3, 4, 5]
    kept = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(kept) == 2 and all(len(raw) == 4 for raw in kept)


def test_a_refusing_disk_costs_only_the_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    box = PoisonBox(tmp_path / "file")
    box.put("block", b"id", b"raw", ValueError())
    assert b"id" in box and "cannot keep a poisonous block" in caplog.text
