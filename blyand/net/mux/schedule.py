"""Whose bytes leave next: urgent streams before bulk, each class in turns.

A turn is one frame, so that an urgent byte waits for at most one frame of bulk; bulk has
a turn at least once in a megabyte of urgent bytes, so that it never starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from blyand.net.mux.frames import data_head

FRAME_BYTES = 64 * 1024
URGENT_BYTES = 1024 * 1024  # in a row, while bulk waits


class Outflow:
    """The sending half of a stream."""

    __slots__ = ("id", "credit", "pending", "bulk", "queued")

    def __init__(self, identity: int, credit: int) -> None:
        self.id = identity
        self.credit = credit  # bytes that we may send
        self.pending: memoryview | None = None
        self.bulk = False
        self.queued = False  # stands in one of the queues


S = TypeVar("S", bound=Outflow)


class Schedule(Generic[S]):
    """The streams that have bytes and credit, in the order of their turns."""

    def __init__(self) -> None:
        self._urgent: deque[S] = deque()
        self._bulk: deque[S] = deque()
        self._urgent_run = 0  # bytes since bulk had a turn

    def __bool__(self) -> bool:
        return bool(self._urgent or self._bulk)

    def add(self, stream: S) -> None:
        """Queue a stream; nothing happens if it is queued or may not send."""
        if not stream.queued and stream.credit:
            stream.queued = True
            (self._bulk if stream.bulk else self._urgent).append(stream)

    def take(self, limit: int, pieces: list[bytes | memoryview]) -> Iterator[S]:
        """Add frames to `pieces`, `limit` bytes or one frame more.

        Yields each stream whose last byte was taken.
        """
        size = 0
        while size < limit and (stream := self._choose()) is not None:
            size += self._take_frame(stream, pieces)
            if stream.pending is None:
                yield stream

    def _choose(self) -> S | None:
        while True:
            patient = not self._bulk or self._urgent_run < URGENT_BYTES
            queue = self._urgent if self._urgent and patient else self._bulk
            if not queue:
                return None
            stream = queue.popleft()
            stream.queued = False
            if stream.pending is None or not stream.credit:
                continue
            if stream.bulk is (queue is self._bulk):
                return stream
            self.add(stream)  # its class was changed while it waited

    def _take_frame(self, stream: S, pieces: list[bytes | memoryview]) -> int:
        pending = stream.pending
        assert pending is not None
        size = min(len(pending), stream.credit, FRAME_BYTES)
        pieces.append(data_head(stream.id, size))
        pieces.append(pending[:size])
        stream.credit -= size
        self._urgent_run = 0 if stream.bulk else self._urgent_run + size
        if size < len(pending):
            stream.pending = pending[size:]
            self.add(stream)
        else:
            stream.pending = None
        return size
