"""`/blyan/mux/1` on a secured connection, as libp2p wants a muxer.

Strategy. The machine decides; three tasks of `start` read, write and watch. Whoever
queues something tries to send it at once; what the connection does not take is left to
the writing task. So no call of a user is inside a write when it is cancelled, and a
stream's error never reaches another stream.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from blyan_proto.errors import ProtocolError
from blyand.net.mux.channel import Channel, channel_of
from blyand.net.mux.events import (
    Event,
    Finished,
    GoneAway,
    Opened,
    Ponged,
    Received,
    WasReset,
)
from blyand.net.mux.frames import GoawayCode
from blyand.net.mux.machine import Machine
from blyand.net.mux.stream import MuxStream
from blyand.net.wire import LOST
from blyand.rules.net.misbehaviour import Blame

log = logging.getLogger(__name__)

PROTOCOL_ID = "/blyan/mux/1"
PING_EVERY_S = 15.0
SILENCE_S = 20.0  # after a ping; any byte of the peer's counts
CLOSE_S = 1.0
_LEAST_BYTES, _MOST_BYTES = 64 * 1024, 256 * 1024  # taken from the machine at once


def _blame_nobody(peer: str, error: Exception) -> None:
    log.debug("%s: %s", peer, error)


class MuxConnection(IMuxedConn):  # type: ignore[misc]
    """One connection. libp2p calls `start` once, in a task of its own."""

    def __init__(
        self, conn: ISecureConn, peer_id: ID, blame: Blame = _blame_nobody
    ) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.rtt_s: float | None = None  # of the last ping
        self.on_close: Callable[[], Awaitable[None]] | None = None  # libp2p sets it
        self.event_started = trio.Event()
        self.event_shutting_down = trio.Event()
        self.event_closed = trio.Event()
        self.machine = Machine(conn.is_initiator)
        self._blame = blame
        self._channel: Channel = channel_of(conn)
        self._streams: dict[int, MuxStream] = {}
        self._writing: set[MuxStream] = set()
        self._arrived: dict[int, MuxStream] = {}  # not accepted yet
        self._arrival = trio.Event()
        self._slot: trio.Event | None = None  # of those who wait to open a stream
        self._blocked = False  # the connection takes nothing more: the writer waits
        self._unblock = trio.Event()
        self._batch = _LEAST_BYTES
        self._scope = trio.CancelScope()
        self._closing = False
        self._heard = False
        self._ping: tuple[int, float] | None = None

    @property
    def is_initiator(self) -> bool:
        return bool(self.secured_conn.is_initiator)

    @property
    def is_established(self) -> bool:
        return bool(
            self.event_started.is_set() and not self.event_shutting_down.is_set()
        )

    @property
    def is_closed(self) -> bool:
        return bool(self.event_closed.is_set())

    async def start(self) -> None:
        """Serve the connection until it ends; never raises an error of the peer's."""
        self.event_started.set()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
        finally:
            with trio.CancelScope(shield=True):  # `close` bounds itself
                await self.close()

    # Streams

    async def open_stream(self) -> MuxStream:
        """Open a stream; waits while too many are open. MuxedConnUnavailable."""
        while not self.machine.may_open:
            if self.machine.gone_away or self.event_shutting_down.is_set():
                break
            if self._slot is None:
                self._slot = trio.Event()
            await self._slot.wait()
        if self.machine.gone_away or self.event_shutting_down.is_set():
            raise MuxedConnUnavailable("the connection takes no more streams")
        await trio.lowlevel.checkpoint_if_cancelled()
        identity = self.machine.open()
        stream = self._streams[identity] = MuxStream(self, identity, True)
        return stream  # its OPEN leaves with the first bytes, or before the first wait

    async def accept_stream(self) -> MuxStream:
        """Return the next stream that the peer opens. MuxedConnUnavailable."""
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            if self.event_shutting_down.is_set():
                raise MuxedConnUnavailable("the connection is closed")
            await self._arrival.wait()
        return self._arrived.pop(next(iter(self._arrived)))

    async def close(self) -> None:
        """Close the connection and every stream; may be called twice, or cancelled."""
        if self._closing:
            await self.event_closed.wait()
            return
        self._closing = True
        self._end(GoawayCode.DONE)
        try:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self.secured_conn.close()
        except LOST as error:
            log.debug("closing: %r", error)
        finally:
            self.event_closed.set()
        if self.on_close is not None:
            with trio.CancelScope(shield=True):
                await self.on_close()

    def _end(self, code: GoawayCode) -> None:
        """End all that waits for this connection; say goodbye if that needs no wait."""
        if self.event_shutting_down.is_set():
            return
        self.event_shutting_down.set()
        self.machine.go_away(code)
        if not self._blocked:
            try:
                self._channel.send_nowait(self.machine.take(0))
            except BaseLibp2pError:
                pass
        self._arrived.clear()
        self._arrival.set()
        for stream in self._streams.values():
            stream.cut()
        self._streams.clear()
        self._wake_writers()
        self._free_slot()
        self._scope.cancel()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self.secured_conn.get_remote_address()
        return address

    def get_transport_addresses(self) -> Any:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        return self.secured_conn.get_connection_type()

    # What streams call

    def pump(self) -> None:
        """Send what the machine has, as far as the connection takes it at once."""
        if self._blocked or not self.machine.has_output:
            return
        try:
            if self._channel.send_nowait(self.machine.take(self._batch)):
                self._batch = min(2 * self._batch, _MOST_BYTES)
                if self.machine.has_output:  # others have their turn first
                    self._block()
            else:
                self._batch = _LEAST_BYTES
                self._block()
        except BaseLibp2pError as error:
            log.debug("%s: %s", self.peer_id, error)
            self._scope.cancel()
        self._wake_writers()

    def _block(self) -> None:
        self._blocked = True
        self._unblock.set()

    def await_room(self, stream: MuxStream) -> None:
        """Wake this stream when what it wrote has left."""
        self._writing.add(stream)

    def forget(self, stream: MuxStream) -> None:
        """A stream of ours may have ended."""
        self._streams.pop(stream.identity, None)
        self._writing.discard(stream)
        self._free_slot()

    def _free_slot(self) -> None:
        if self._slot is not None:
            self._slot.set()
            self._slot = None

    def _wake_writers(self) -> None:
        for stream in list(self._writing):
            if not self.machine.pending(stream.identity):
                self._writing.discard(stream)
                stream.wake_writer()

    # Tasks

    async def _read(self) -> None:
        try:
            while True:
                await self._channel.receive(self._take)
        except BaseLibp2pError as error:
            log.debug("%s: %s", self.peer_id, error)
        except ProtocolError as error:
            self._end(GoawayCode.VIOLATION)
            self._blame(str(self.peer_id), error)
        self._scope.cancel()

    def _take(self, raw: memoryview) -> None:
        self._heard = True
        for event in self.machine.receive(raw, trio.current_time()):
            self._apply(event)
        self.pump()
        if self.machine.may_open:  # a reset may have been confirmed
            self._free_slot()

    def _apply(self, event: Event) -> None:
        if isinstance(event, Received):
            if (stream := self._streams.get(event.stream)) is not None:
                stream.put(event.body)
        elif isinstance(event, Opened):
            stream = self._streams[event.stream] = MuxStream(self, event.stream, False)
            self._arrived[event.stream] = stream
            self._arrival.set()
            self._arrival = trio.Event()
        elif isinstance(event, Finished):
            if (stream := self._streams.get(event.stream)) is not None:
                stream.end()
        elif isinstance(event, WasReset):
            if (stream := self._streams.pop(event.stream, None)) is not None:
                stream.cut()
            self._arrived.pop(event.stream, None)
            self._free_slot()
        elif isinstance(event, Ponged):
            if self._ping is not None and event.token == self._ping[0]:
                self.rtt_s = self.machine.rtt_s = trio.current_time() - self._ping[1]
                self._ping = None
        elif isinstance(event, GoneAway):
            self._free_slot()  # whoever waits to open a stream learns it

    async def _write(self) -> None:
        while True:
            await self._unblock.wait()
            self._unblock = trio.Event()
            try:
                await self._channel.flush()
            except BaseLibp2pError as error:
                log.debug("%s: %s", self.peer_id, error)
                self._scope.cancel()
            await trio.lowlevel.checkpoint()
            self._blocked = False
            self.pump()

    async def _watch(self) -> None:
        token = 0
        while True:
            token += 1
            self._ping = token, trio.current_time()
            self._heard = False
            self.machine.ping(token)
            self.pump()
            await trio.sleep(PING_EVERY_S)
            if not self._heard:
                await trio.sleep(SILENCE_S - PING_EVERY_S)
            if not self._heard:
                log.debug("%s is silent", self.peer_id)
                self._end(GoawayCode.SILENCE)
