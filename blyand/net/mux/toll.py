"""What the frames of a peer cost us beyond their bytes: bounded by rate.

A frame of 9 bytes costs as much work as one of 64 KiB, and a stream that is opened and
reset at once costs a task (CVE-2023-44487). So each pays out of a purse that refills.
"""

from __future__ import annotations

from blyan_proto.errors import LimitExceeded

PURSE = 100_000  # full
PURSE_PER_S = 20_000
SMALL_BYTES = 256  # parts of DATA from this size on are free
FRAME_COST = 1
OPEN_COST = 5  # of any stream
STREAM_COST = 50  # of one that its opener gave up, or that was refused


class Toll:
    """The purse of one peer."""

    def __init__(self) -> None:
        self._left = float(PURSE)
        self._filled = 0.0  # seconds; of any clock that goes forward

    def refill(self, now: float) -> None:
        since = max(0.0, now - self._filled)
        self._left = min(float(PURSE), self._left + since * PURSE_PER_S)
        self._filled = now

    def pay(self, cost: int) -> None:
        """LimitExceeded once the purse is empty."""
        self._left -= cost
        if self._left < 0:
            raise LimitExceeded(
                "more small frames, or streams given up, than are borne"
            )
