"""A token bucket: so much at once, so much a second afterwards."""

from __future__ import annotations


class Bucket:
    """Holds at most `burst` tokens; `rate` come back a second. Starts full."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, now

    def take(self, amount: float, now: float) -> bool:
        """Take tokens and return True, or take none and return False. `now`: s."""
        refilled = self._left + self._rate * max(0.0, now - self._at)
        self._left, self._at = min(self._burst, refilled), max(now, self._at)
        if amount > self._left:
            return False
        self._left -= amount
        return True
