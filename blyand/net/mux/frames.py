"""The frames of `/blyan/mux/1`: layout, bounds, and a reader for bytes as they come.

Every frame is an 8-byte head (kind u8, length u24, stream u32, big-endian) and `length`
bytes of body. Only DATA has a body of free length; it is handed on in parts as it
arrives, so that nothing waits for, or allocates, a whole frame.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from blyan_proto.errors import DecodeError, LimitExceeded

HEAD = struct.Struct(">II")
HEAD_BYTES = 8
MAX_DATA_BYTES = 128 * 1024
MAX_STREAM = (1 << 31) - 1
_LENGTH = (1 << 24) - 1


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1  # u32: what its receiver may send at once
    DATA = 2
    CREDIT = 3  # u32: what its receiver may send in addition
    FIN = 4
    RESET = 5  # u32: ResetCode
    PING = 6  # u64: any
    PONG = 7  # u64: as in the ping
    GOAWAY = 8  # u32: GoawayCode


class ResetCode(IntEnum):
    """Why a stream was reset. Unknown codes mean the same as ABANDONED."""

    ABANDONED = 0
    REFUSED = 1  # too many streams; nothing of it was read
    CONFIRMED = 2  # the answer to a RESET


class GoawayCode(IntEnum):
    """Why a side opens, or takes, no more streams."""

    DONE = 0
    VIOLATION = 1
    SILENCE = 2


# Body length of every kind but DATA, and the kinds that belong to no stream.
_FIXED = {
    Kind.OPEN: 4,
    Kind.CREDIT: 4,
    Kind.FIN: 0,
    Kind.RESET: 4,
    Kind.PING: 8,
    Kind.PONG: 8,
    Kind.GOAWAY: 4,
}
_OF_CONNECTION = (Kind.PING, Kind.PONG, Kind.GOAWAY)
_BODIES = {int(kind): size for kind, size in _FIXED.items()}
_DATA = int(Kind.DATA)
_LONGEST = HEAD_BYTES + max(_BODIES.values())


class Frame(NamedTuple):
    """A frame, or a part of a DATA frame: `value` is a number, or the bytes."""

    kind: int
    stream: int
    value: int | bytes


def data_head(stream: int, length: int) -> bytes:
    """Return the head of a DATA frame."""
    return HEAD.pack(_DATA << 24 | length, stream)


def control(kind: Kind, stream: int = 0, value: int = 0) -> bytes:
    """Return a whole frame of any kind but DATA."""
    size = _FIXED[kind]
    return HEAD.pack(kind << 24 | size, stream) + value.to_bytes(size, "big")


class FrameReader:
    """Bytes in pieces of any size -> frames. Holds at most 16 bytes."""

    def __init__(self) -> None:
        self._part = bytearray()  # of a head, or of a head with its short body
        self._stream = 0  # of the DATA frame under way
        self._missing = 0  # bytes of it to come

    @property
    def partial(self) -> bool:
        """True inside a frame."""
        return bool(self._part or self._missing)

    def feed(self, raw: bytes | memoryview) -> list[Frame]:
        """Return the frames in `raw`; the bytes of DATA are copied.

        DecodeError for a head that is none, LimitExceeded for a DATA frame above
        128 KiB. The reader is of no use afterwards.
        """
        found: list[Frame] = []
        with memoryview(raw) as view:
            place, end = 0, len(view)
            while place < end:
                if self._missing:
                    taken = min(self._missing, end - place)
                    body = bytes(view[place : place + taken])
                    found.append(Frame(_DATA, self._stream, body))
                    self._missing -= taken
                    place += taken
                elif self._part or end - place < _LONGEST:
                    place = self._feed_slowly(view, place, found)
                else:
                    place += self._take(view, place, found)
        return found

    def _feed_slowly(self, view: memoryview, place: int, found: list[Frame]) -> int:
        """Assemble one frame's head, and its body unless it is DATA."""
        part = self._part
        wanted = HEAD_BYTES
        while True:
            if len(part) >= HEAD_BYTES:
                word, _ = HEAD.unpack_from(part)
                wanted = HEAD_BYTES + _BODIES.get(word >> 24, 0)
                if len(part) == wanted:
                    self._take(part, 0, found)
                    self._part = bytearray()
                    return place
            more = view[place : place + wanted - len(part)]
            if not more:
                return place
            part += more
            place += len(more)

    def _take(self, raw: memoryview | bytearray, place: int, found: list[Frame]) -> int:
        """Read the head at `place` and a short body; return how long they are."""
        word: int
        word, stream = HEAD.unpack_from(raw, place)
        kind, length = word >> 24, word & _LENGTH
        if kind == _DATA:
            if length > MAX_DATA_BYTES:
                raise LimitExceeded(f"a DATA frame of {length} bytes")
            if not length or not 0 < stream <= MAX_STREAM:
                raise DecodeError("a DATA frame without bytes or stream")
            self._stream, self._missing = stream, length
            return HEAD_BYTES
        if _BODIES.get(kind) != length:
            raise DecodeError(f"no frame: kind {kind}, {length} bytes")
        if (stream == 0) is not (kind in _OF_CONNECTION) or stream > MAX_STREAM:
            raise DecodeError(f"a frame of kind {kind} on stream {stream}")
        body = raw[place + HEAD_BYTES : place + HEAD_BYTES + length]
        found.append(Frame(kind, stream, int.from_bytes(body, "big")))
        return HEAD_BYTES + length
