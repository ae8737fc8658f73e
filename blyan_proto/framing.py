"""Length-prefixed frames, sans-I/O: feed bytes, take frames.

A frame is a u32 big-endian length and that many bytes. The length is checked against
the caller's bound before a single byte of the body is kept.
"""

from __future__ import annotations

from blyan_proto.errors import LimitExceeded

PREFIX_BYTES = 4


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front."""
    return len(body).to_bytes(PREFIX_BYTES, "big") + body


class FrameReader:
    """Collects received bytes and gives back whole frames."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, received: bytes) -> None:
        """Add received bytes. LimitExceeded as soon as a prefix announces too much."""
        self._buffer += received
        self._announced()

    def take(self) -> bytes | None:
        """Return the next whole frame, or None when more bytes are needed."""
        length = self._announced()
        if length is None or len(self._buffer) < PREFIX_BYTES + length:
            return None
        body = bytes(self._buffer[PREFIX_BYTES : PREFIX_BYTES + length])
        del self._buffer[: PREFIX_BYTES + length]
        self._announced()
        return body

    @property
    def needed(self) -> int:
        """How many more bytes the frame under way wants (at least 1)."""
        length = self._announced()
        whole = PREFIX_BYTES + (length or 0)
        return max(1, whole - len(self._buffer))

    @property
    def partial(self) -> bool:
        """True when the stream would end in the middle of a frame."""
        return bool(self._buffer)

    def _announced(self) -> int | None:
        if len(self._buffer) < PREFIX_BYTES:
            return None
        length = int.from_bytes(self._buffer[:PREFIX_BYTES], "big")
        if length > self._limit:
            raise LimitExceeded(f"a frame of {length} bytes, at most {self._limit}")
        return length
