"""One stream of a mux connection: bytes that arrived, and waiting.

One task may read while another writes. A cancelled read loses nothing; a cancelled
write may have sent a part, so its caller resets the stream.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

if TYPE_CHECKING:
    from blyand.net.mux.driver import MuxConnection

_SMALL_BYTES = 4 * 1024  # pieces up to this are joined as they arrive
_JOINED_BYTES = 64 * 1024
_MOST = 1 << 62  # bytes: all there are

Piece: TypeAlias = bytes | bytearray | memoryview


class MuxStream(IMuxedStream):  # type: ignore[misc]
    """A stream, as libp2p uses it. Errors are MuxedStreamError's kinds."""

    def __init__(self, conn: MuxConnection, identity: int, ours: bool) -> None:
        self.muxed_conn = self.conn = conn
        self.identity = identity
        self._ours = ours  # opened by us: what arrives is an answer
        self._chunks: deque[Piece] = deque()
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._writing = trio.Lock()
        self._ended = False  # by the peer
        self._finished = False  # by us
        self._lost = False

    async def read(self, n: int | None = None) -> bytes:
        """Return at least one and at most `n` bytes (None, -1: what is here)."""
        if n == 0:
            return b""
        return b"".join(await self.read_pieces(_MOST if n is None or n < 0 else n))

    async def read_pieces(self, n: int) -> list[Piece]:
        """Return at least one and at most `n` bytes, as they arrived, without a copy."""
        if not self._chunks:
            self.conn.pump()
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._chunks:
            if self._ended:
                raise MuxedStreamEOF("the peer finished")
            if self._lost:
                raise MuxedStreamReset("the stream was reset")
            if self._readable is None:
                self._readable = trio.Event()
            await self._readable.wait()
        pieces, size = self._take(n)
        self.conn.machine.consumed(self.identity, size, trio.current_time())
        self.conn.pump()
        return pieces

    def _take(self, n: int) -> tuple[list[Piece], int]:
        pieces: list[Piece] = []
        size, chunks = 0, self._chunks
        while chunks and size < n:
            piece = chunks.popleft()
            if len(piece) > n - size:
                view = memoryview(piece)
                chunks.appendleft(view[n - size :])
                piece = view[: n - size]
            pieces.append(piece)
            size += len(piece)
        return pieces, size

    async def write(self, data: bytes | memoryview) -> None:
        """Return when all bytes were handed to the connection."""
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            self._check_writable()
            await trio.lowlevel.checkpoint_if_cancelled()
            machine = self.conn.machine
            machine.send(self.identity, memoryview(data).cast("B"))
            self.conn.pump()
            waited = False
            while machine.pending(self.identity) and not self._lost:
                self._writable = trio.Event()
                self.conn.await_room(self)
                await self._writable.wait()
                waited = True
            if self._lost:
                raise MuxedStreamReset("the stream was reset")
            if not waited and len(data) >= _JOINED_BYTES:
                await trio.lowlevel.cancel_shielded_checkpoint()  # others' turn
        except trio.Cancelled:
            self.conn.machine.withdraw(self.identity)
            if self._finished and not self._lost:  # its end would pass for the whole
                self.lose()
                self.conn.pump()
                self.conn.forget(self)
            raise
        finally:
            self._writing.release()

    def _check_writable(self) -> None:
        if self._lost:
            raise MuxedStreamReset("the stream was reset")
        if self._finished:
            raise MuxedStreamClosed("the stream is finished")

    async def close_write(self) -> None:
        """Finish our side. The peer reads the end after the last byte."""
        if not self._finished and not self._lost:
            self._finished = True
            self.conn.machine.finish(self.identity)
            self.conn.pump()
            self._forget_if_done()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def close(self) -> None:
        await self.close_write()

    async def reset(self) -> None:
        """Give the stream up, both ways. What was not read is dropped."""
        was_lost = self._lost
        self.lose()
        if not was_lost:
            self.conn.machine.reset(self.identity)
            self.conn.pump()
            self.conn.forget(self)
        await trio.lowlevel.checkpoint_if_cancelled()

    def set_priority(self, bulk: bool) -> None:
        """Send this stream's bytes after everybody's urgent ones, or (default) not."""
        self.conn.machine.set_bulk(self.identity, bulk)

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("deadlines are the caller's, with cancel scopes")

    @property
    def is_closed(self) -> bool:
        return self._lost or (self._ended and self._finished)

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.conn.get_remote_address()

    async def __aenter__(self) -> MuxStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # What the connection calls

    def put(self, body: bytes) -> None:
        """Bytes arrived. Small ones are joined: a byte must not cost an object."""
        chunks = self._chunks
        if chunks and len(body) <= _SMALL_BYTES:
            last = chunks[-1]
            if isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
                last += body
            elif len(last) <= _SMALL_BYTES:
                chunks[-1] = bytearray(last) + body
            else:
                chunks.append(bytearray(body))
        else:
            chunks.append(body)
        self._wake_reader()

    def end(self) -> None:
        """The peer finished its side."""
        self._ended = True
        self._wake_reader()
        self._forget_if_done()

    def lose(self) -> None:
        """We gave the stream up: nothing of it is read any more."""
        self._chunks.clear()
        self._ended = False
        self.cut()

    def cut(self) -> None:
        """The peer gave the stream up, or its connection ended.

        An answer that is here already can be read; a request is not worth keeping.
        """
        self._lost = True
        if not self._ours:
            self._chunks.clear()
            self._ended = False
        self._wake_reader()
        self.wake_writer()

    def wake_writer(self) -> None:
        if self._writable is not None:
            self._writable.set()

    def _wake_reader(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def _forget_if_done(self) -> None:
        if self._ended and self._finished:
            self.conn.forget(self)
