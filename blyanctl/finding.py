"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: str  # ok, warn, fail
    found: str
    advice: str = ""
