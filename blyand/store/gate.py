"""A gate that many pass at once, or one alone: who closes a thing waits for its users."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """``with gate:`` is passing; it blocks only while somebody is alone inside.

    A thread may pass while it passes already (the collector of garbage does), but not
    ask to be alone then.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # over a lock that its owner may retake
        self._inside = 0

    def __enter__(self) -> None:
        with self._changed:
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and keep everybody out for the block."""
        with self._changed:
            while self._inside:
                self._changed.wait()
            yield
