"""A TLS session over a libp2p connection: large reads and writes, safe to cancel.

Strategy. OpenSSL works on memory; what it produced is kept until the connection took
it, so a record is never torn: whoever writes next, or flushes, sends the rest first. On
a TCP socket everything that can be done at once is done without a turn of the loop.
The handshake is in guard/tls.py. docs/protocols/streams.md
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import IRawConnection
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.base_session import BaseSession

from blyand.net.wire import LOST, RECORD_BYTES, STALL_S, Wire

CHUNK_BYTES = 256 * 1024  # read from a socket at once, and encrypted at once
BARREN_BYTES = 64 * 1024  # received in a row without any content: four records
_SMALL_BYTES = 4 * 1024  # pieces up to this are joined before they are encrypted

Sink = Callable[[memoryview], None]
_SCRATCH = trio.lowlevel.RunVar[tuple[bytearray, bytearray]]("tls buffers")


class TlsSession(BaseSession):  # type: ignore[misc]
    """An authenticated connection, as libp2p and the muxer use it.

    One task may read while one writes. Errors are ConnectionClosedError. A write that
    is cancelled has happened, or will with the next; a cancelled read loses nothing.
    """

    def __init__(
        self,
        raw: IRawConnection,
        wire: Wire,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        **identity: Any,
    ) -> None:
        super().__init__(**identity)
        self._raw, self._wire = raw, wire
        self._tls, self._incoming, self._outgoing = tls, incoming, outgoing
        self._rest = memoryview(b"")  # encrypted, not taken by the wire yet
        self._sending = trio.Lock()
        self._closed = False
        self._ended = False  # nothing more will arrive
        self._drained = False  # the last read took all: the next would be in vain
        self._barren = 0  # bytes since the last content

    # What libp2p calls

    async def read(self, n: int | None = None) -> bytes:
        """Return at least one and at most `n` bytes."""
        size = RECORD_BYTES if n is None or n < 0 else min(n, RECORD_BYTES)
        if not size:
            return b""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            if received := self._decrypt(size):
                return received
            await self._fill()

    async def write(self, data: bytes | memoryview) -> None:
        async with self._sending:
            await self.flush()
            with memoryview(data) as view:
                for place in range(0, len(view), CHUNK_BYTES):
                    self.send_nowait([view[place : place + CHUNK_BYTES]])
                    await self.flush()

    async def close(self) -> None:
        """Say goodbye if that takes no waiting, and close the connection."""
        if not self._closed:
            self._closed = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # the peer's goodbye is not waited for
            try:
                self._push()
            except ConnectionClosedError:
                pass
        try:
            await self._raw.close()
        except LOST as error:
            raise ConnectionClosedError(f"connection lost: {error}") from error

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._raw.get_remote_address()
        return address

    def get_transport_addresses(self) -> Any:
        return self._raw.get_transport_addresses()

    def get_connection_type(self) -> Any:
        return self._raw.get_connection_type()

    # What our muxer calls

    def send_nowait(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Take pieces, all of them; False if `flush` must be awaited before more."""
        if self._closed:
            raise ConnectionClosedError("connection closed")
        small: list[bytes | memoryview] = []
        for piece in pieces:
            if len(piece) > _SMALL_BYTES:
                self._encrypt(b"".join(small))
                small.clear()
                self._encrypt(piece)
            else:
                small.append(piece)
        self._encrypt(b"".join(small))
        return self._push()

    async def flush(self) -> None:
        """Wait until everything was taken by the connection."""
        while not self._push():
            with trio.move_on_after(STALL_S) as scope:
                await self._wire.writable()
            if scope.cancelled_caught:
                raise ConnectionClosedError("the peer stopped reading")

    async def receive(self, sink: Sink) -> None:
        """Wait for bytes and call `sink` once with all that are here.

        The view is valid during the call only. Others have had their turn meanwhile.
        """
        plain, _ = _buffers()
        while True:
            size = 0
            with memoryview(plain) as view:
                while self._undecrypted and (count := self._decrypt_into(view[size:])):
                    size += count
                if size:
                    sink(view[:size])
                    return
            await self._fill()

    @property
    def _undecrypted(self) -> bool:
        """False if OpenSSL would say that it wants more, which costs an exception."""
        return bool(self._incoming.pending or self._incoming.eof or self._tls.pending())

    # OpenSSL and the wire

    def _encrypt(self, piece: bytes | memoryview) -> None:
        done = 0
        while done < len(piece):
            try:
                done += self._tls.write(piece[done:] if done else piece)
            except ssl.SSLError as error:
                raise ConnectionClosedError(f"tls: {error}") from error

    def _push(self) -> bool:
        """Hand encrypted bytes to the wire; True if it took all."""
        while True:
            if not self._rest:
                if not self._outgoing.pending:
                    return self._wire.idle
                self._rest = memoryview(self._outgoing.read())
            sent = self._wire.send_nowait(self._rest)
            self._rest = self._rest[sent:]
            if self._rest:
                return False

    def _decrypt(self, size: int) -> bytes:
        try:
            received: bytes = self._tls.read(size)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise ConnectionClosedError(f"tls: {error}") from error
        if not received:
            raise ConnectionClosedError("the peer ended the connection")
        self._barren = 0
        return received

    def _decrypt_into(self, view: memoryview) -> int:
        """Return how many bytes were put into `view`, 0 if there are none now."""
        if not view:
            return 0
        try:
            count: int = self._tls.read(len(view), view)  # type: ignore[assignment]
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            raise ConnectionClosedError(f"tls: {error}") from error
        self._ended = self._ended or not count
        self._barren = 0
        return count

    async def _fill(self) -> None:
        """Wait for encrypted bytes and give them to OpenSSL."""
        if self._ended:
            raise ConnectionClosedError("the peer ended the connection")
        if self._closed:
            raise ConnectionClosedError("connection closed")
        if self._barren > BARREN_BYTES:  # such as changes of keys, without end
            raise ConnectionClosedError("the peer sends records without content")
        _, scratch = _buffers()
        size = None
        if not self._drained:
            with memoryview(scratch) as view:
                size = self._wire.receive_nowait(view)
                self._drained = size is None or size < len(view)
                if size:
                    self._barren += self._incoming.write(view[:size])
            if size:
                await trio.lowlevel.checkpoint()
                return
        if size is None:
            received = await self._wire.receive()
            self._drained = False
            if received is None:
                return  # the next turn reads
            size = self._incoming.write(received) if received else 0
            self._barren += size
        if not size:
            self._ended = True
            self._incoming.write_eof()


def _buffers() -> tuple[bytearray, bytearray]:
    """Return (plain, encrypted): of use until the next await, so one pair is enough."""
    try:
        pair: tuple[bytearray, bytearray] = _SCRATCH.get()
    except LookupError:
        pair = bytearray(CHUNK_BYTES + RECORD_BYTES), bytearray(CHUNK_BYTES)
        _SCRATCH.set(pair)
    return pair
