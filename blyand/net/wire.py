"""The raw connection below a TLS session: a socket used without waiting, or any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import trio
from libp2p.abc import IRawConnection
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError

STALL_S = 20.0  # a connection that takes no byte for so long is lost
RECORD_BYTES = 16 * 1024  # the most that one TLS record holds
LOST = (BaseLibp2pError, OSError, trio.ClosedResourceError, trio.BrokenResourceError)


class Wire(Protocol):
    """The raw connection below a session. Errors are ConnectionClosedError."""

    idle: bool  # False while something that was taken is still to be sent

    def send_nowait(self, raw: memoryview) -> int:
        """Return how many bytes were taken without waiting."""

    async def writable(self) -> None:
        """Wait until more can be taken."""

    def receive_nowait(self, into: memoryview) -> int | None:
        """Return how many bytes were read, 0 at the end, None if there are none now."""

    async def receive(self) -> bytes | None:
        """Wait for bytes; None: `receive_nowait` has them. b"" is the end."""


class SocketWire:
    """A TCP socket, used without waiting wherever it is ready."""

    idle = True

    def __init__(self, socket: Any) -> None:
        self._socket = socket  # of trio: its number is -1 once it is closed

    def send_nowait(self, raw: memoryview) -> int:
        try:
            return os.write(self._socket.fileno(), raw)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionClosedError(f"connection lost: {error}") from error

    async def writable(self) -> None:
        await self._wait(trio.lowlevel.wait_writable)

    def receive_nowait(self, into: memoryview) -> int | None:
        try:
            return os.readv(self._socket.fileno(), [into])
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionClosedError(f"connection lost: {error}") from error

    async def receive(self) -> bytes | None:
        await self._wait(trio.lowlevel.wait_readable)
        return None

    async def _wait(self, ready: Callable[[Any], Any]) -> None:
        try:
            await ready(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("connection closed") from error


class StreamWire:
    """Any other connection, such as a relayed one. A write cannot be interrupted."""

    def __init__(self, raw: IRawConnection) -> None:
        self.idle = True
        self._raw = raw
        self._taken = b""

    def send_nowait(self, raw: memoryview) -> int:
        if not self.idle:
            return 0
        self._taken, self.idle = bytes(raw), False
        return len(raw)

    async def writable(self) -> None:
        with trio.move_on_after(STALL_S, shield=True):
            try:
                await self._raw.write(self._taken)
            except LOST as error:
                raise ConnectionClosedError(f"connection lost: {error}") from error
            self.idle = True
            return
        raise ConnectionClosedError("the peer stopped reading")

    def receive_nowait(self, into: memoryview) -> int | None:
        return None

    async def receive(self) -> bytes | None:
        try:
            received: bytes = await self._raw.read(RECORD_BYTES)
            return received
        except LOST as error:
            raise ConnectionClosedError(f"connection lost: {error}") from error


def wire_of(raw: IRawConnection) -> Wire:
    """Return the fastest wire for a raw connection of libp2p's."""
    stream = getattr(getattr(raw, "stream", None), "stream", None)
    if isinstance(stream, trio.SocketStream):
        return SocketWire(stream.socket)
    return StreamWire(raw)
