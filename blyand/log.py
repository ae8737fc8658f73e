"""Logging: one line per record, to stderr and to a bounded file.

A record is time, level, logger, message and ``key=value`` context. Text from outside
cannot start a line of its own. The word BROKEN stands for a bug of ours and nothing
else; tests fail on it.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

BROKEN = "BROKEN"

_bound: ContextVar[dict[str, Any]] = ContextVar("log context", default={})


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Add `fields` to every record that this task logs inside the block."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bound() -> dict[str, Any]:
    """Return the fields that records of this task carry now."""
    return _bound.get()


def fields(**named: Any) -> dict[str, Any]:
    """Context of a single record: ``log.info("stored", extra=fields(block=id))``."""
    return {"context": named}


def broken(log: logging.Logger, what: str, error: BaseException, **named: Any) -> None:
    """Log a bug of ours, with its traceback."""
    log.error("%s %s", BROKEN, what, exc_info=error, extra=fields(**named))


class _Line(logging.Formatter):
    """Formats a record as one line of text, or as one JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.gmtime(record.created)
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{record.msecs:03.0f}Z"
        named = {**_bound.get(), **getattr(record, "context", {})}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            entry = {
                **{key: _plain(value) for key, value in named.items()},
                "time": moment,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
            return json.dumps(entry | ({"trace": trace} if trace else {}))
        parts = [moment, record.levelname, record.name, _one_line(record.getMessage())]
        parts += [f"{key}={_value(value)}" for key, value in named.items()]
        return " ".join(parts + ([f"trace={json.dumps(trace)}"] if trace else []))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _value(value: Any) -> str:
    text = str(_plain(value))
    return text if text.isprintable() and text and " " not in text else json.dumps(text)


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


@contextmanager
def logging_to(
    file: Path | None, *, level: str, as_json: bool, file_bytes: int, files: int
) -> Iterator[None]:
    """Send every record to stderr and, if given, to `file` until the block ends.

    At most `files` files of `file_bytes` each are kept: ``log``, ``log.1``, ….
    """
    receivers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        receivers.append(
            logging.handlers.RotatingFileHandler(
                file, maxBytes=file_bytes, backupCount=files - 1, encoding="utf-8"
            )
        )
    root = logging.getLogger()
    before = root.level
    root.setLevel(level.upper())
    # The transport below us speaks of every stranger's hang-up; its errors suffice.
    for noisy in ("libp2p", "multiaddr", "async_service"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for receiver in receivers:
        receiver.setFormatter(_Line(as_json))
        root.addHandler(receiver)
    try:
        yield
    finally:
        root.setLevel(before)
        for receiver in receivers:
            root.removeHandler(receiver)
            receiver.close()
