"""The log of events: who connected, which streams ran, who was blamed; never what was said.

One JSON object per line, in a file that is rotated by size. Off unless `log.events`
names a file: it is for whoever looks for a fault, and it names peers.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from blyand.config import Config
from blyand.home import Home

log = logging.getLogger(__name__)

MAX_TEXT = 200  # characters of one field
OFF = "off"

Note = Callable[..., None]  # note(event, **fields)


class Diary:
    """Appends events to a file; at most `files` of `file_bytes` each are kept."""

    def __init__(self, path: Path, file_bytes: int, files: int) -> None:
        self._path, self._file_bytes, self._files = path, file_bytes, files
        self._file: TextIO | None = None
        self._size = 0

    def note(self, event: str, **fields: Any) -> None:
        """Write one event. A disk that refuses ends the diary, not the daemon."""
        entry = {"time_ms": time.time_ns() // 1_000_000, "event": event}
        entry |= {name: _plain(value) for name, value in fields.items()}
        line = json.dumps(entry) + "\n"
        try:
            if self._file is None or self._size + len(line) > self._file_bytes:
                self._turn()
            assert self._file is not None
            self._file.write(line)
            self._size += len(line)
        except OSError as error:
            log.warning("no more events are written to %s: %s", self._path, error)
            self.note = unnoted  # type: ignore[method-assign]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _turn(self) -> None:
        """Open the file, or the next one when it is full."""
        self.close()
        if self._path.exists() and self._path.stat().st_size >= self._file_bytes // 2:
            for number in range(self._files - 1, 0, -1):
                older = self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
            self._path.unlink(missing_ok=True)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._path.chmod(0o600)
        self._size = self._path.stat().st_size

    def _numbered(self, number: int) -> Path:
        if not number:
            return self._path
        return self._path.with_name(f"{self._path.name}.{number}")


def unnoted(event: str, **fields: Any) -> None:
    """A Note that keeps nothing."""


def _plain(value: Any) -> Any:
    if isinstance(value, (int, float)) or value is None:
        return value
    return str(value)[:MAX_TEXT]


def diary_of(home: Home, config: Config) -> tuple[Path | None, int, int]:
    """Return path, size and number of the files that the options name."""
    chosen = config.log.events
    path = None if chosen in (OFF, "") else home.path / chosen  # absolute: itself
    return path, config.log.file_mib << 20, config.log.files


@contextmanager
def open_diary(path: Path | None, file_bytes: int, files: int) -> Iterator[Note]:
    """Give `note(event, **fields)`, which keeps nothing without a path."""
    if path is None:
        yield unnoted
        return
    diary = Diary(path, file_bytes, files)
    try:
        yield lambda event, **fields: diary.note(event, **fields)
    finally:
        diary.close()
