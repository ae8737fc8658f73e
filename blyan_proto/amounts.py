"""Amounts of money as people read them; everywhere else they are micro-BLY."""

from __future__ import annotations

MICRO = 1_000_000  # micro-BLY in one BLY


def bly(micro: int) -> str:
    """Return an amount in BLY, exactly: 1,234.5 BLY."""
    sign, rest = "-" if micro < 0 else "", abs(micro)
    part = f".{rest % MICRO:06}".rstrip("0").rstrip(".")
    return f"{sign}{rest // MICRO:,}{part} BLY"
