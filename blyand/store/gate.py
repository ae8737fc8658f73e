"""A gate that many pass at once, or one alone: who closes a thing waits for its users."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """``with gate:`` is passing; it blocks only while somebody is, or waits to be, alone.

    A thread that is inside may pass again: the collector of garbage does so at any
    moment. It may not ask to be alone then.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0  # threads
        self._is_wanted = False  # by somebody who wants to be alone
        self._own = threading.local()  # how often this thread is inside

    def __enter__(self) -> None:
        # The depth is set before and taken back after the thread is counted, so that
        # whoever passes in between does not wait for this very thread.
        self._own.depth = self._depth + 1
        if self._own.depth == 1:
            with self._changed:
                while self._is_wanted:
                    self._changed.wait()
                self._inside += 1

    def __exit__(self, *_: object) -> None:
        if self._own.depth == 1:
            with self._changed:
                self._inside -= 1
                if self._is_wanted and not self._inside:
                    self._changed.notify_all()
        self._own.depth -= 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody in any more, wait until those inside are out, and run the block."""
        with self._changed:
            while self._is_wanted:
                self._changed.wait()
            self._is_wanted = True
            self._own.depth = 1
            try:
                while self._inside:
                    self._changed.wait()
                yield
            finally:
                self._own.depth = 0
                self._is_wanted = False
                self._changed.notify_all()

    @property
    def _depth(self) -> int:
        depth: int = getattr(self._own, "depth", 0)
        return depth
