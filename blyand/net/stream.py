"""MessageStream: frames and typed messages, bounded and timed.

Strategy. A frame is bounded before it is read and every wait has a deadline. A read
that was interrupted loses nothing; a write that was interrupted ends the stream, since
part of a frame may be out. docs/protocols/streams.md
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.stream_muxer.exceptions import MuxedStreamEOF

from blyan_proto.codec import Choice, decode, encode
from blyan_proto.errors import LimitExceeded, ProtocolError, UnexpectedMessage
from blyan_proto.framing import PREFIX_BYTES, frame
from blyan_proto.protocols.result import RESULT_BYTES, ResultCode
from blyand.errors import (
    Busy,
    NotHere,
    Pruned,
    StaleVersion,
    TooSlow,
    Unavailable,
)
from blyand.net.inflow import Inflow
from blyand.net.link import UNKNOWN
from blyand.net.mux.stream import MuxStream, Piece
from blyand.net.traffic import Traffic as Traffic  # a part of its signature
from blyand.net.wire import LOST
from blyand.rules.net.misbehaviour import Blame

T = TypeVar("T")
Serve = Callable[["MessageStream"], Awaitable[None]]

SEND_DEADLINE_S = 30.0
_READ_AHEAD = 16 * 1024  # one read takes a small frame whole
_READ_MOST = 256 * 1024
_READ_MOST_BULK = 512 * 1024
_HEAD_BYTES = 65_000  # copied behind the prefix; the rest of a frame is sent as is

CODES: tuple[tuple[type[Unavailable], ResultCode], ...] = (
    (Busy, ResultCode.BUSY),
    (StaleVersion, ResultCode.STALE_VERSION),
    (Pruned, ResultCode.PRUNED),
    (NotHere, ResultCode.ABSENT),
    (Unavailable, ResultCode.UNAVAILABLE),
)


class MessageStream:
    """One stream of length-prefixed messages with an authenticated peer.

    One task may receive while any number send. A send that was cancelled or ran into
    its deadline half-way ends the stream: later calls raise NotHere.
    """

    def __init__(
        self,
        transport: INetStream,
        peer: str,
        protocol: str,
        traffic: Traffic,
        link: str = UNKNOWN,
        bulk: bool = False,
        region: str = UNKNOWN,
    ) -> None:
        """`link`: class of the connection; `region`: SAME, OTHER or UNKNOWN; `bulk`:
        yields to small messages."""
        self.peer = peer
        self.protocol = protocol
        self.ended = False  # the peer finished its side
        self.answered = False  # at least one frame left this side
        self.draining = trio.Event()  # set when the serving side wants to end
        self._transport = transport
        self._meter = traffic.meter(protocol, link, region)
        self._inflow = Inflow()
        self._ahead = _READ_MOST_BULK if bulk else _READ_AHEAD
        self._length: int | None = None  # of the frame whose prefix was read
        self._held = b""  # a result frame that travels with the next frame
        self._gone = False
        self._sending = trio.Lock()
        # libp2p's stream takes two locks for each read and write, and knows no priority.
        muxed = getattr(transport, "muxed_stream", None)
        self._direct = muxed if isinstance(muxed, MuxStream) else None
        if self._direct is not None:
            self._direct.set_priority(bulk)

    async def __aenter__(self) -> MessageStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await (self.aclose() if kind is None else self.reset())

    async def send(
        self,
        body: bytes,
        deadline_s: float = SEND_DEADLINE_S,
        *,
        head: bytes = b"",
    ) -> None:
        """Send one frame, `head` then `body`. TooSlow or NotHere if it did not leave whole.

        A `head` apart spares the copy of a large body.
        """
        prefix = (len(head) + len(body)).to_bytes(PREFIX_BYTES, "big") + head
        rest = memoryview(body)[_HEAD_BYTES:]
        await self._send(prefix + body[:_HEAD_BYTES], rest, deadline_s)

    async def send_framed(self, frames: memoryview, deadline_s: float) -> None:
        """Send whole frames that stand one behind the other, prefixes included.

        For bulk: one write for many frames, without a copy. As `send`.
        """
        await self._send(b"", frames, deadline_s)

    async def _send(self, head: bytes, rest: memoryview, deadline_s: float) -> None:
        with trio.move_on_after(deadline_s) as scope:
            async with Taken(self._sending):
                head, self._held = self._held + head, b""
                if head:
                    await self._write(head)
                if rest:
                    await self._write(rest)
        if scope.cancelled_caught:
            raise TooSlow(f"{self.protocol}: the peer did not take a frame in time")

    async def receive(self, limit: int, deadline_s: float) -> bytes:
        """Return the next frame's body, at most `limit` bytes.

        LimitExceeded before a longer one is read; TooSlow after `deadline_s`; NotHere
        when the peer ended, reset or lost the stream.
        """
        body = await self.receive_or_end(limit, deadline_s)
        if body is None:
            raise NotHere(f"{self.protocol}: the peer ended the stream")
        return body

    async def receive_or_end(self, limit: int, deadline_s: float) -> bytes | None:
        """Like `receive`, but None when the peer finished between two frames."""
        parts = await self.receive_parts(0, limit, deadline_s)
        return None if parts is None else parts[1]

    async def receive_parts(
        self, head_bytes: int, limit: int, deadline_s: float
    ) -> tuple[bytes, bytes] | None:
        """Like `receive_or_end`, the frame cut after its first `head_bytes`."""
        with trio.move_on_after(deadline_s):
            if (length := await self._frame(limit)) is None:
                return None
            head = self._inflow.take(min(head_bytes, length))
            return head, self._inflow.take(length - len(head))
        raise TooSlow(f"{self.protocol}: nothing within {deadline_s:g} s")

    async def receive_into(
        self, head_bytes: int, room: memoryview, deadline_s: float
    ) -> tuple[bytes, int] | None:
        """Like `receive_parts`, but the rest goes into `room`; return how long it is.

        For bulk: memory that is used again is not zeroed and mapped again.
        """
        limit = head_bytes + len(room)
        length = self._whole(limit)  # spares a deadline
        if length is None:
            with trio.move_on_after(deadline_s) as scope:
                length = await self._frame(limit)
            if scope.cancelled_caught:
                raise TooSlow(f"{self.protocol}: nothing within {deadline_s:g} s")
            if length is None:
                return None
        head = self._inflow.take(min(head_bytes, length))
        self._inflow.take_into(room[: length - len(head)])
        return head, length - len(head)

    async def _frame(self, limit: int) -> int | None:
        """Wait for a whole frame; return its length, None at a clean end."""
        if self._length is None and self._inflow.size < PREFIX_BYTES:
            if not await self._fill(PREFIX_BYTES, may_end=True):
                return None
        while (length := self._whole(limit)) is None:
            await self._fill(self._length or PREFIX_BYTES)
        return length

    def _whole(self, limit: int) -> int | None:
        """Return the length of the next frame if all of it is here."""
        if self._length is None:
            if self._inflow.size < PREFIX_BYTES:
                return None
            self._length = int.from_bytes(self._inflow.take(PREFIX_BYTES), "big")
        if (length := self._length) > limit:
            raise LimitExceeded(f"a frame of {length} bytes, at most {limit}")
        if self._inflow.size < length:
            return None
        self._length = None
        return length

    async def send_message(
        self,
        message: Any,
        choice: Choice | None = None,
        deadline_s: float = SEND_DEADLINE_S,
    ) -> None:
        """Send a typed message, as a member of `choice` if one is given."""
        try:
            body = encode(message) if choice is None else choice.encode(message)
        except ProtocolError as error:  # ours, not the peer's
            raise ValueError(f"cannot encode: {error}") from error
        await self.send(body, deadline_s)

    async def receive_message(
        self, kind: type[T] | Choice, limit: int, deadline_s: float
    ) -> Any:
        """Return the next message, of the class or choice `kind`.

        ProtocolError when its bytes are anything else; otherwise as `receive`.
        """
        body = await self.receive(limit, deadline_s)
        if isinstance(kind, Choice):
            return kind.decode(body, limit)
        return decode(kind, body, limit)

    async def send_result(self, code: ResultCode) -> None:
        """Answer with a result. OK travels with the frame that follows it."""
        self._held = frame(bytes([code]))
        if code is not ResultCode.OK:
            await self.flush()

    async def flush(self) -> None:
        """Send a result that is still held back."""
        if self._held:
            async with self._sending:
                held, self._held = self._held, b""
                await self._write(held)

    async def close_write(self) -> None:
        """Finish our side: the peer reads an end of stream after our last frame."""
        await self.flush()
        try:
            await self._transport.close_write()
        except LOST as error:
            raise NotHere(f"{self.protocol}: the stream is gone") from error

    async def aclose(self) -> None:
        """Let the stream go; never raises, at most a second."""
        if not self.ended or self._gone:
            await self.reset()
            return
        with trio.move_on_after(1, shield=True):
            try:
                await self._transport.close()
            except LOST:
                pass

    async def reset(self) -> None:
        """Abandon the stream in both directions; never raises, at most a second."""
        self._gone = True
        with trio.move_on_after(1, shield=True):
            try:
                await self._transport.reset()
            except LOST:
                pass

    async def drain(self, limit: int) -> None:
        """Discard what the peer still sends, until it finishes or `limit` is reached."""
        while not self.ended and limit > 0:
            self._inflow.clear()
            self._length = None
            if not await self._fill(1, may_end=True):
                return
            limit -= self._inflow.size

    async def _write(self, raw: bytes | memoryview) -> None:
        if self._gone:
            raise NotHere(f"{self.protocol}: the stream is gone")
        self.answered = True
        whole = False
        try:
            await (self._direct or self._transport).write(raw)
            whole = True
        except LOST as error:
            raise NotHere(f"{self.protocol}: the stream is gone") from error
        finally:
            self._gone = self._gone or not whole
        self._meter.up.add(len(raw))

    async def _fill(self, size: int, may_end: bool = False) -> bool:
        """Read until `size` bytes are here; False at a clean end (if it may be)."""
        while (missing := size - self._inflow.size) > 0:
            if self._gone:
                raise NotHere(f"{self.protocol}: the stream is gone")
            try:
                pieces = await self._read(max(min(missing, _READ_MOST), self._ahead))
            except (StreamEOF, MuxedStreamEOF) as error:
                self.ended = True
                if may_end and not self._inflow.size:
                    return False
                raise NotHere(f"{self.protocol}: the stream ended early") from error
            except LOST as error:
                self._gone = True
                raise NotHere(f"{self.protocol}: the stream is gone") from error
            self._meter.down.add(self._inflow.put(pieces))
        return True

    async def _read(self, most: int) -> list[Piece]:
        if self._direct is not None:
            return await self._direct.read_pieces(most)
        return [await self._transport.read(most)]


class Taken:
    """`async with lock`, without a turn of the loop where the lock is free."""

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *error: object) -> None:
        self._lock.release()


async def expect_ok(stream: MessageStream, deadline_s: float) -> None:
    """Read the result of a request; return on OK, raise what the code says otherwise.

    Busy, StaleVersion, Pruned, NotHere, Unavailable; UnexpectedMessage for a code that
    does not exist.
    """
    raw = await stream.receive(RESULT_BYTES, deadline_s)
    if len(raw) != RESULT_BYTES or raw[0] not in ResultCode._value2member_map_:
        raise UnexpectedMessage(f"{stream.protocol}: {raw!r} is no result")
    code = ResultCode(raw[0])
    if code is ResultCode.OK:
        return
    for error, means in CODES:
        if means is code:
            raise error(f"{stream.protocol}: the peer answers {code.name}")
    raise Unavailable(f"{stream.protocol}: the peer answers {code.name}")


@asynccontextmanager
async def requesting(
    stream: MessageStream, blame: Blame
) -> AsyncIterator[MessageStream]:
    """Let a block use a stream as client: close it after, blame broken formats."""
    try:
        yield stream
    except ProtocolError as error:
        blame(stream.peer, error)
        raise
    finally:
        await stream.aclose()
