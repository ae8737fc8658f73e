"""RawStreams: streams without our frames, for libp2p's own protocols.

What a peer starts runs in the host's nursery, few at a time for each peer, and ends as
an exchange of ours ends: a broken format is blamed, what cannot be now is not.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from blyan_proto.errors import DecodeError, ProtocolError, UnexpectedMessage
from blyand.errors import NotHere, TooSlow, Unavailable
from blyand.net.address import parse
from blyand.net.connections import Connections, PeerInfo
from blyand.net.guard import circuit
from blyand.net.guard.host import reset
from blyand.net.identity import parse_peer_id
from blyand.rules.net.misbehaviour import Blame

log = logging.getLogger(__name__)

OPEN_DEADLINE_S = 5.0
AT_ONCE_PER_PEER = 8  # exchanges; what became a circuit is counted by its owner

Serve = Callable[[INetStream, str], Awaitable[None]]


class RawStreams:
    """Opens and serves raw streams. Made by `Host` only."""

    def __init__(
        self, libp2p: Any, connections: Connections, nursery: trio.Nursery, blame: Blame
    ) -> None:
        self.connections, self.blame = connections, blame
        self.swarm = libp2p.get_network()
        self.libp2p, self._nursery = libp2p, nursery
        self._serving: Counter[tuple[str, str]] = Counter()  # (protocol, peer)

    def handle(self, protocol: str, serve: Serve) -> None:
        """Run `serve(stream, peer)` for each stream that a peer opens; then end it."""

        async def enter(stream: INetStream) -> None:
            # libp2p takes the stream back when this returns.
            done = trio.Event()
            peer = str(stream.muxed_conn.peer_id)
            self._nursery.start_soon(self._run, protocol, serve, stream, peer, done)
            await done.wait()

        self.libp2p.set_stream_handler(protocol, enter)

    def refuse(self, protocol: str) -> None:
        """Serve a protocol no longer; streams under way go on."""
        self.libp2p.remove_stream_handler(protocol)

    async def open(self, peer: str, protocol: str) -> INetStream:
        """Open a stream on a direct connection. NotHere or TooSlow."""
        for connection in self.connections.live(parse_peer_id(peer)):
            if not circuit.is_circuit(connection):
                return await self.open_on(connection, protocol, OPEN_DEADLINE_S)
        raise NotHere(f"{peer} is not connected")

    async def open_on(
        self, connection: Any, protocol: str, deadline_s: float
    ) -> INetStream:
        """Open a stream on a connection and agree on its protocol. NotHere or TooSlow."""
        stream = None
        opened = False
        try:
            with trio.fail_after(deadline_s):
                stream = await connection.new_stream()
                await self.libp2p.multiselect_client.select_one_of(
                    [protocol],
                    MultiselectCommunicator(stream),
                    math.inf,  # our own deadline stands around it
                )
                stream.set_protocol(protocol)
                opened = True
        except trio.TooSlowError as error:
            raise TooSlow(f"the peer did not open {protocol} in time") from error
        except (BaseLibp2pError, OSError, ValueError) as error:
            raise NotHere(f"the peer does not serve {protocol}: {error}") from error
        finally:
            if stream is not None and not opened:
                await reset(stream)
        return stream

    async def answer(
        self, stream: INetStream, kind: Any, deadline_s: float = OPEN_DEADLINE_S
    ) -> Any:
        """Return the status that answers a request."""
        answer = await circuit.receive(stream, kind, deadline_s)
        if answer.type != kind.STATUS:
            raise UnexpectedMessage("a relay is answered with a status")
        return answer

    def info(self, peer: str) -> PeerInfo:
        """Return a connected peer, or raise NotHere."""
        for info in self.connections.peers():
            if info.peer_id == peer:
                return info
        raise NotHere(f"{peer} is not connected")

    def ip_of(self, peer: str) -> str:
        """Return the IP at which a peer is directly connected; "" if it is not."""
        try:
            return str(parse(self.info(peer).address).ip)
        except (DecodeError, NotHere):
            return ""

    @contextmanager
    def lasting(self, protocol: str, peer: str) -> Iterator[None]:
        """An exchange under way became something that is counted elsewhere."""
        self._serving[protocol, peer] -= 1
        try:
            yield
        finally:
            self._serving[protocol, peer] += 1

    async def _run(
        self,
        protocol: str,
        serve: Serve,
        stream: INetStream,
        peer: str,
        done: trio.Event,
    ) -> None:
        mine = (protocol, peer)
        self._serving[mine] += 1
        try:
            if self._serving[mine] <= AT_ONCE_PER_PEER:
                await serve(stream, peer)
                await _finish(stream)
        except Unavailable as error:
            log.debug("%s of %s: %s", protocol, peer, error)
        except ProtocolError as error:
            self.blame(peer, error)
        finally:
            self._serving[mine] -= 1
            if not self._serving[mine]:
                del self._serving[mine]
            await reset(stream)
            done.set()


async def _finish(stream: INetStream) -> None:
    """Finish our side and give the peer a moment to read it."""
    with trio.move_on_after(1):
        try:
            await stream.close_write()
            await stream.read(1)
        except (BaseLibp2pError, OSError):
            pass


def peer_of(raw: bytes) -> str:
    """Return the peer id in a message. DecodeError if it cannot be one."""
    if not 0 < len(raw) <= 64:
        raise DecodeError("not a peer id")
    return str(ID(raw))
