"""A pace that a peer has to keep: it is made to wait, which is nobody's fault."""

from __future__ import annotations

import trio


class Rate:
    """A bucket of tokens; whoever finds it empty waits until its turn."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, trio.current_time()

    def wait_s(self, cost: float = 1.0) -> float:
        """Take `cost` tokens and return the seconds until they are there."""
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        self._left -= cost
        return max(0.0, -self._left / self._per_s)

    @property
    def is_full(self) -> bool:
        """True if the bucket says nothing any more that a new one would not."""
        elapsed_s = trio.current_time() - self._at
        left: float = self._left + elapsed_s * self._per_s
        return left >= self._burst
