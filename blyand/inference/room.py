"""Memory for keys and values: promised before it is used, refused before it is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blyand.errors import Busy
from blyand.metrics import Metrics


class Room:
    """A budget of bytes for the caches of all sequences. Use it from the loop only.

    What is kept only because it may be useful again (prefixes) counts too; `spare` is
    asked to drop some of it before anybody is refused.
    """

    def __init__(self, budget_bytes: int, metrics: Metrics) -> None:
        self.budget_bytes = budget_bytes
        self._taken = 0
        self._spare: list[Callable[[int], None]] = []
        self._gauge = metrics.gauge("inference_cache_bytes")
        self._refused = metrics.counter("inference_cache_refused")

    @property
    def left(self) -> int:
        """Bytes that nobody has taken."""
        return self.budget_bytes - self._taken

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Promise `size` bytes for as long as the block lasts. Busy without room."""
        self.claim(size)
        try:
            yield
        finally:
            self.release(size)

    def claim(self, size: int) -> None:
        """Take `size` bytes until `release`. Busy without room."""
        for spare in self._spare:
            if size > self.left:
                spare(size - self.left)
        if size > self.left:
            self._refused.add()
            raise Busy(
                f"{size >> 20} MiB of keys and values asked for, "
                f"{max(self.left, 0) >> 20} of {self.budget_bytes >> 20} are free"
            )
        self._taken += size
        self._gauge.set(self._taken)

    def release(self, size: int) -> None:
        """Give back what `claim` took."""
        self._taken -= size
        self._gauge.set(self._taken)

    def spares(self, drop: Callable[[int], None]) -> None:
        """Call `drop(bytes)` to free memory that is only kept in case of need."""
        self._spare.append(drop)
