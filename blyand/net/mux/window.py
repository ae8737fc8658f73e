"""How much a peer may send on a stream before we have read it.

Every stream begins with 64 KiB. Beyond that the receiver decides: windows grow while
the peer uses them up, out of a budget that all streams of the connection share. So a
connection holds at most 256 x 64 KiB for each side's streams, and the budget.
"""

from __future__ import annotations

from blyan_proto.errors import LimitExceeded

FIRST_CREDIT = 64 * 1024  # of every stream, in both directions, without a frame
COMMON_BYTES = 256 * 1024  # what a window grows to at once while there is budget
WINDOW_BYTES = 4 << 20  # the most that a window grows to
BUDGET_BYTES = 16 << 20  # of a connection, beyond the first credits
LEAST_BYTES = 16 * 1024  # growing by less is not worth a frame
MAX_CREDIT = 64 << 20  # more is a violation: nobody needs it


class Budget:
    """What the windows of a connection may grow by, together."""

    def __init__(self, total: int = BUDGET_BYTES) -> None:
        self.left = total

    def take(self, wanted: int) -> int:
        """Return how much of `wanted` is given: never more than a quarter of the rest."""
        given = min(wanted, self.left // 4)
        if given < LEAST_BYTES:
            return 0
        self.left -= given
        return given


class Window:
    """The receiving side of one stream: what was granted, what came of it."""

    __slots__ = ("size", "open", "_budget", "_unreturned", "_read", "_since")

    def __init__(self, budget: Budget) -> None:
        self.size = FIRST_CREDIT
        self.open = FIRST_CREDIT  # bytes that the peer may still send
        self._budget = budget
        self._unreturned = 0  # read, and not granted again yet
        self._read = 0  # returned since `_since`
        self._since = 0.0

    def grow_first(self) -> int:
        """Grow to the common size; return what to grant for it."""
        return self._grow(COMMON_BYTES - self.size)

    def take(self, count: int) -> None:
        """Bytes arrived. LimitExceeded if the peer was not granted them."""
        self.open -= count
        if self.open < 0:
            raise LimitExceeded("the peer sends more than it was granted")

    def consumed(self, count: int, now: float = 0.0, rtt_s: float = 0.0) -> int:
        """Bytes were read by the stream's user; return what to grant, 0 if it can wait.

        A window that holds its peer up doubles: the peer has used half of it before we
        return an eighth, or all of it was read within two round trips of `rtt_s`.
        """
        self._unreturned += count
        if self._unreturned < self.size // 8:
            return 0
        grant, self._unreturned = self._unreturned, 0
        if not self._read:
            self._since = now
        self._read += grant
        held_up = self.open <= self.size // 2
        if self._read >= self.size:
            held_up = held_up or now - self._since < 2 * rtt_s
            self._read = 0
        self.open += grant
        if held_up:
            grant += self._grow(min(self.size, WINDOW_BYTES - self.size))
        return grant

    def close(self) -> None:
        """Give back what the window had grown by."""
        self._budget.left += self.size - FIRST_CREDIT
        self.size = FIRST_CREDIT

    def _grow(self, wanted: int) -> int:
        given = self._budget.take(wanted)
        self.size += given
        self.open += given
        return given
