"""What the muxer needs of a secured connection, and any connection made to fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio
from libp2p.abc import ISecureConn
from libp2p.io.exceptions import ConnectionClosedError

from blyand.net.tls import Sink, TlsSession
from blyand.net.wire import STALL_S


class Channel(Protocol):
    """A connection that takes pieces whole. Errors are libp2p's."""

    def send_nowait(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Take pieces, all of them; False if `flush` must be awaited before more."""

    async def flush(self) -> None:
        """Wait until everything has left."""

    async def receive(self, sink: Sink) -> None:
        """Wait for bytes, at least one turn, and call `sink` once with them."""


class StockChannel:
    """A session of libp2p's own, such as noise, whose writes must not be interrupted."""

    def __init__(self, conn: ISecureConn) -> None:
        self._conn = conn
        self._taken: list[bytes] = []

    def send_nowait(self, pieces: Sequence[bytes | memoryview]) -> bool:
        if pieces:
            self._taken.append(b"".join(pieces))  # their owner may change them later
        return not self._taken

    async def flush(self) -> None:
        raw, self._taken = b"".join(self._taken), []
        if raw:
            with trio.move_on_after(STALL_S, shield=True) as scope:
                await self._conn.write(raw)
            if scope.cancelled_caught:
                raise ConnectionClosedError("the peer stopped reading")

    async def receive(self, sink: Sink) -> None:
        received = await self._conn.read(None)
        if not received:
            raise ConnectionClosedError("the peer ended the connection")
        sink(memoryview(received))


def channel_of(conn: ISecureConn) -> Channel:
    return conn if isinstance(conn, TlsSession) else StockChannel(conn)
