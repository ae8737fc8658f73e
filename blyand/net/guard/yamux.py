"""Yamux as in libp2p 0.8.1, minus what makes it unsafe under cancellation and attack.

Mended: a cancelled write lost a cipher nonce and with it every stream of the connection;
a cancelled read lost bytes; a cancelled open leaked one of 256 slots; a write gave up
after 5 s without credit; a reset looked like a clean end; a peer could ignore its
window (unbounded memory), fill many of them, and send frames that carry nothing as fast
as we could read them. The wire format is stock yamux.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

import trio
from libp2p.io.exceptions import IncompleteReadError, IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from blyan_proto.errors import LimitExceeded, ProtocolError
from blyand.net.guard.pace import Rate

WRITE_STALL_S = 20.0  # a connection that takes no byte for so long is closed
WINDOW_BYTES = 4 << 20  # the most that a stream's window grows to; stock: 16 MiB
CREDIT_BYTES = yamux.DEFAULT_WINDOW_SIZE // 4  # read before credit is given back
WINDOW_SLACK_BYTES = 1 << 20  # the most that our own accounting grants too much
BODY_S = 30.0  # for a body that was announced
HELD_BYTES = 32 << 20  # received on all streams of a connection and not read yet
_SUM_EVERY_BYTES = 1 << 20
# Frames without data: opens, credit, ends. Stock sends one for every read().
EMPTY_FRAMES_PER_S = 2000
EMPTY_FRAMES_BURST = 8000
# Pings, frames of no kind, data of no length: nobody needs many.
IDLE_FRAMES_PER_S = 100
IDLE_FRAMES_BURST = 1000
# One data frame and its header are exactly one noise message.
_FRAME_BYTES = 65535 - 16 - yamux.HEADER_SIZE


class GuardedStream(YamuxStream):  # type: ignore[misc]
    """A yamux stream whose reads lose nothing when cancelled and whose writes wait.

    Stock: a write gives up after 5 s without credit; a read that is cancelled while it
    returns credit drops the bytes it took, and every read returns credit in a frame.
    """

    def __init__(self, stream_id: int, conn: Yamux, is_initiator: bool) -> None:
        self._credit = 0
        self._credited = trio.Event()
        self._unreturned = 0  # bytes read whose credit was not sent back yet
        super().__init__(stream_id, conn, is_initiator)

    @property
    def send_window(self) -> int:
        return self._credit

    @send_window.setter
    def send_window(self, size: int) -> None:
        self._credit = size
        if size > 0:
            self._credited.set()
            self._credited = trio.Event()

    async def read(self, n: int | None = -1) -> bytes:
        if n == 0:
            return b""
        while not (buffer := self.conn.stream_buffers.get(self.stream_id)):
            if self.reset_received:
                raise MuxedStreamReset("stream was reset")
            event = self.conn.stream_events.get(self.stream_id)
            if self.recv_closed or event is None:
                raise MuxedStreamEOF("stream is closed for receiving")
            await event.wait()
            if self.stream_id in self.conn.stream_events:
                self.conn.stream_events[self.stream_id] = trio.Event()
        size = len(buffer) if n is None or n < 0 else min(n, len(buffer))
        received = bytes(buffer[:size])
        del buffer[:size]
        self._unreturned += size
        if self._unreturned >= CREDIT_BYTES or self.closed:
            returned, self._unreturned = self._unreturned, 0
            with trio.CancelScope(shield=True):  # the bytes are taken already
                if self.closed:
                    await self.conn._finalize_stream(self, fully_closed=True)
                else:
                    await self._auto_tune_and_send_window_update(bytes_read=returned)
        return received

    async def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            if self.send_closed or self.closed:
                raise MuxedStreamError("stream is closed for sending")
            size = min(self.send_window, _FRAME_BYTES, len(view))
            if size <= 0:
                with trio.move_on_after(0.25):  # a close does not set the event
                    await self._credited.wait()
                continue
            self.send_window -= size
            header = struct.pack(
                yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, size
            )
            await self.conn._write_frame(header + view[:size])
            view = view[size:]


class Abuse(RawConnError):  # type: ignore[misc]
    """The peer broke a bound of the multiplexer; its connection ends."""


class _Window(bytearray):
    """Received bytes of one stream; refuses more than the peer was granted."""

    def __init__(self, connection: Yamux, stream_id: int) -> None:
        super().__init__()
        self._connection, self._stream_id = connection, stream_id

    def extend(self, received: Any) -> None:
        stream = self._connection.streams.get(self._stream_id)
        granted = stream.target_recv_window if stream else yamux.DEFAULT_WINDOW_SIZE
        if len(self) + len(received) > granted + WINDOW_SLACK_BYTES:
            self._connection.accuse("ignores flow control")
        self._connection.check_held(len(received))
        super().extend(received)


class _Windows(dict[int, bytearray]):
    def __init__(self, connection: Yamux) -> None:
        super().__init__()
        self._connection = connection

    def __setitem__(self, stream_id: int, _: bytearray) -> None:
        super().__setitem__(stream_id, _Window(self._connection, stream_id))


class GuardedYamux(Yamux):  # type: ignore[misc]
    """Yamux whose frames leave whole or end the connection, with real windows."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.stream_buffers = _Windows(self)
        # What stock calls to read a frame knows the secured connection only.
        self.secured_conn.frames = _Frames(self.accuse)
        self.blame: Callable[[ProtocolError], None] = lambda error: None
        self._unsummed = 0

    def accuse(self, what: str) -> NoReturn:
        """Blame the peer and raise what ends the connection."""
        self.blame(LimitExceeded(f"yamux: {what}"))
        raise Abuse(f"the peer {what}")

    def check_held(self, more: int) -> None:
        """Raise Abuse if the unread bytes of all streams are too many."""
        self._unsummed += more
        if self._unsummed >= _SUM_EVERY_BYTES:
            self._unsummed = 0
            if sum(map(len, self.stream_buffers.values())) > HELD_BYTES:
                self.accuse("fills many windows that nobody reads")

    async def open_stream(self) -> YamuxStream:
        await self.stream_backlog_semaphore.acquire()
        stream_id: int = self.next_stream_id
        self.next_stream_id += 2
        stream = GuardedStream(stream_id, self, True)
        stream._owns_backlog_slot = True
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = bytearray()
        self.stream_events[stream_id] = trio.Event()
        try:
            if self.event_shutting_down.is_set():
                raise MuxedConnUnavailable("connection is closed")
            await self._write_frame(
                struct.pack(
                    yamux.YAMUX_HEADER_FORMAT,
                    0,
                    yamux.TYPE_WINDOW_UPDATE,
                    yamux.FLAG_SYN,
                    stream_id,
                    0,
                )
            )
        except BaseException:  # stock leaks one of 256 slots when it is cancelled here
            self._finalize_stream_locked(stream, fully_closed=True)
            raise
        return stream

    async def _read_data_body(self, length: int) -> bytes:
        with trio.fail_after(BODY_S):
            return await _read(self.secured_conn, length)

    async def _write_frame(self, data: bytes) -> None:
        # A cancelled write would lose a cipher nonce: every later frame of every
        # stream would fail to decrypt.
        async with self._write_lock:
            with trio.move_on_after(WRITE_STALL_S, shield=True) as scope:
                try:
                    await self.secured_conn.write(data)
                except IOException as error:
                    # Stock reads on after most errors: what a peer sent before it
                    # hung up would keep its connection alive for hours.
                    raise RawConnError("the connection is lost") from error
        if scope.cancelled_caught:
            with trio.move_on_after(1, shield=True):
                await self.secured_conn.close()
            raise RawConnError("the peer stopped reading")


class _Frames:
    """How many frames without data a peer sends: it waits, or is accused."""

    def __init__(self, accuse: Callable[[str], NoReturn]) -> None:
        self._accuse = accuse
        self._empty = Rate(EMPTY_FRAMES_PER_S, EMPTY_FRAMES_BURST)
        self._idle = Rate(IDLE_FRAMES_PER_S, IDLE_FRAMES_BURST)

    async def check(self, header: bytes) -> None:
        _, kind, flags, _, length = struct.unpack(yamux.YAMUX_HEADER_FORMAT, header)
        if kind == yamux.TYPE_DATA and length > yamux.MAX_WINDOW_SIZE:
            self._accuse(f"announces a frame of {length} bytes")
        if kind == yamux.TYPE_DATA and length:
            return
        if kind > yamux.TYPE_GO_AWAY or kind == yamux.TYPE_PING or not flags | length:
            if self._idle.wait_s() > 0:
                self._accuse("sends frames that carry nothing")
        if (wait_s := self._empty.wait_s()) > 0:
            await trio.sleep(wait_s)


async def _read(conn: Any, size: int) -> bytes:
    """Read `size` bytes; stock gives up after a hundred partial reads."""
    read = bytearray()
    while len(read) < size:
        received = await conn.read(size - len(read))
        if not received:
            raise IncompleteReadError("the connection ended", size, len(read))
        read += received
    return bytes(read)


async def _read_header(conn: Any, size: int) -> bytes:
    """What stock reads a header with; bodies take another way, whatever their size."""
    header = await _read(conn, size)
    await conn.frames.check(header)
    return header


def mend_yamux() -> None:
    """Put the guarded classes in stock's place; libp2p names them, not its caller."""
    yamux.read_exactly = _read_header
    muxer_multistream.Yamux = GuardedYamux
    yamux.YamuxStream = GuardedStream
    yamux.MAX_WINDOW_SIZE = WINDOW_BYTES
