"""Circuit relay v2 on the wire, over libp2p's own messages; and circuits as connections.

Upstream's relay service is not used (docs/decisions/0011). Here are the parts of it that
a stranger reaches: messages bounded and timed, a splice that moves no more than granted,
a stream that behaves like a socket. `except Exception` stands only around libp2p's code.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import trio
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from libp2p.abc import INetStream
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from multiaddr import Multiaddr

from blyan_proto.errors import DecodeError, LimitExceeded
from blyand.errors import NoRoute, NotHere, TooSlow
from blyand.net.guard.host import reset
from blyand.net.wire import LOST

__all__ = ["HopMessage", "StopMessage"]

log = logging.getLogger(__name__)

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4096
MESSAGE_DEADLINE_S = 5.0
PIECE_BYTES = 64 * 1024
WRITE_STALL_S = 20.0  # an end that takes no byte for so long loses the circuit

M = TypeVar("M", bound=Message)


async def send(stream: INetStream, message: Message) -> None:
    """Send one message with its varint length. NotHere when it cannot leave."""
    body = message.SerializeToString()
    low, high = len(body) & 0x7F, len(body) >> 7
    prefix = bytes([low | 0x80, high]) if high else bytes([low])
    with trio.move_on_after(MESSAGE_DEADLINE_S):
        try:
            await stream.write(prefix + body)
            return
        except LOST as error:
            raise NotHere(f"the stream is gone: {error!r}") from error
    raise NotHere("the peer does not read")


async def receive(
    stream: INetStream, kind: type[M], deadline_s: float = MESSAGE_DEADLINE_S
) -> M:
    """Read one message. LimitExceeded or DecodeError; NotHere, TooSlow."""
    with trio.move_on_after(deadline_s):
        length = await _length(stream)
        body = b""
        while len(body) < length:
            body += await _some(stream, length - len(body))
        message = kind()
        try:
            message.ParseFromString(body)
        except ProtobufError as error:
            raise DecodeError("not a message of circuit relay") from error
        return message
    raise TooSlow("nothing within the deadline")


async def _length(stream: INetStream) -> int:
    first = (await _some(stream, 1))[0]
    if first < 0x80:
        return first
    second = (await _some(stream, 1))[0]
    length = (first & 0x7F) | second << 7
    if second >= 0x80 or length > MAX_MESSAGE_BYTES:
        raise LimitExceeded(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
    return length


async def _some(stream: INetStream, size: int) -> bytes:
    try:
        received = await stream.read(size)
    except LOST as error:
        raise NotHere(f"the stream is gone: {error!r}") from error
    if not received:
        raise NotHere("the stream ended early")
    return bytes(received)


class _End(ReadWriteCloser):  # type: ignore[misc]
    """A stream as a socket: an end is b"", a loss is a closed connection."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.read(n))
        except StreamEOF:
            return b""
        except LOST as error:
            raise ConnectionClosedError(f"the circuit is gone: {error!r}") from error

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except LOST as error:
            raise ConnectionClosedError(f"the circuit is gone: {error!r}") from error

    async def close(self) -> None:
        await reset(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._stream.get_remote_address()
        return address  # of the relay: all that can be seen of the other end


def circuit_over(
    stream: INetStream, address: Multiaddr, initiator: bool
) -> RawConnection:
    """Return a stream to a relay as a connection to whoever is at its other end."""
    return RawConnection(
        _End(stream), initiator, ConnectionType.RELAYED, addresses=[address]
    )


def is_circuit(connection: Any) -> bool:
    """True for a connection that runs through a relay."""
    return bool(connection.get_connection_type() is ConnectionType.RELAYED)


async def accept(swarm: Any, raw: RawConnection, address: Multiaddr) -> Any:
    """Let the other end of a circuit authenticate; None when it does not.

    The returned connection is known to the swarm; wait for its `event_closed`.
    """
    muxed = None
    try:
        muxed = await swarm.upgrade_inbound_raw_conn(raw, address)
    except Exception as error:
        log.debug("inbound through %s: %r", address, error)
    return muxed


async def probe(swarm: Any, address: Multiaddr, peer: ID, deadline_s: float) -> None:
    """Open a fresh connection and check whose key answers; then close it.

    NoRoute when nobody answers, or another key does; TooSlow. Only the handshake is
    made: the peer proves its key in it, and nothing is added to the swarm.
    """
    transport = swarm.transport_manager.transport_for_dialing(address)
    raw = None
    try:
        with trio.fail_after(deadline_s):
            raw = await transport.dial(address)
            await swarm.upgrader.upgrade_security(raw, True, peer)
    except trio.TooSlowError as error:
        raise TooSlow(f"nobody answers at {address}") from error
    except Exception as error:
        raise NoRoute(f"not reached at {address}: {error!r}") from error
    finally:
        if raw is not None:
            with trio.move_on_after(1, shield=True):
                try:
                    await raw.close()
                except Exception as error:
                    log.debug("closing: %r", error)


async def splice(
    one: INetStream, other: INetStream, most_bytes: int, most_s: float, idle_s: float
) -> int:
    """Carry bytes both ways until an end or a limit; return how many. Resets both."""
    moved = 0
    last = trio.current_time()

    async def pump(source: INetStream, sink: INetStream) -> None:
        nonlocal moved, last
        while True:
            try:
                piece = await source.read(PIECE_BYTES)
            except StreamEOF:
                piece = b""
            moved += len(piece)
            last = trio.current_time()
            if moved > most_bytes:
                nursery.cancel_scope.cancel()
                return
            with trio.fail_after(WRITE_STALL_S):
                if not piece:
                    await sink.close_write()
                    return
                await sink.write(piece)

    async def carry(source: INetStream, sink: INetStream) -> None:
        try:
            await pump(source, sink)
        except (*LOST, trio.TooSlowError) as error:
            log.debug("circuit: %r", error)
            nursery.cancel_scope.cancel()

    async def both() -> None:
        async with trio.open_nursery() as ends:
            ends.start_soon(carry, one, other)
            ends.start_soon(carry, other, one)
        nursery.cancel_scope.cancel()

    try:
        with trio.move_on_after(most_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(both)
                while (left_s := last + idle_s - trio.current_time()) > 0:
                    await trio.sleep(left_s)
                nursery.cancel_scope.cancel()
    finally:
        await reset(one)
        await reset(other)
    return moved
