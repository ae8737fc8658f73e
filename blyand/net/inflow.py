"""Bytes that arrived on a stream and were not used yet, in the pieces in which they came.

A frame is put together once, when all of it is here: bulk would be copied twice more if
pieces were collected in one buffer.
"""

from __future__ import annotations

from collections import deque

from blyand.net.mux.stream import Piece


class Inflow:
    """A queue of bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: deque[Piece] = deque()
        self._place = 0  # in the first piece

    def put(self, pieces: list[Piece]) -> int:
        """Add pieces; return how many bytes they have."""
        count = sum(map(len, pieces))
        self._pieces.extend(pieces)
        self.size += count
        return count

    def take(self, size: int) -> bytes:
        """Remove the first `size` bytes, which are here, and return them."""
        self.size -= size
        parts: list[Piece] = []
        while size:
            first, place = self._pieces[0], self._place
            rest = len(first) - place
            if rest <= size:
                self._pieces.popleft()
                self._place = 0
                parts.append(memoryview(first)[place:] if place else first)
                size -= rest
            else:
                self._place += size
                parts.append(memoryview(first)[place : place + size])
                size = 0
        return b"".join(parts)

    def take_into(self, room: memoryview) -> None:
        """Remove as many bytes as `room` has, which are here, and put them there."""
        size = len(room)
        self.size -= size
        filled = 0
        while filled < size:
            first, place = self._pieces[0], self._place
            count = min(len(first) - place, size - filled)
            room[filled : filled + count] = memoryview(first)[place : place + count]
            filled += count
            self._place += count
            if self._place == len(first):
                self._pieces.popleft()
                self._place = 0

    def clear(self) -> None:
        self._pieces.clear()
        self._place = self.size = 0
