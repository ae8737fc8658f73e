"""Who is connected: told by libp2p, admitted by hello, kept until the last goodbye.

libp2p waits for whoever it tells, so events are only noted here; everything that
follows from them runs in the host's nursery.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from blyan_proto.errors import ProtocolError
from blyand.errors import Unavailable
from blyand.net.identity import parse_peer_id
from blyand.net.stream import Blame

log = logging.getLogger(__name__)

ADMISSION_WAIT_S = 1.0  # the other side may take our answer to its hello for its turn


@dataclass(frozen=True)
class PeerInfo:
    """A connected peer."""

    peer_id: str
    address: str  # multiaddress of the remote end, without /p2p
    inbound: bool
    admitted: bool


PeerCallback = Callable[[PeerInfo], Awaitable[None]]


@dataclass(frozen=True)
class _Presence:
    info: PeerInfo
    admission: trio.Event
    gone: trio.Event

    def now(self) -> PeerInfo:
        return replace(self.info, admitted=self.admission.is_set())


class Connections(INotifee):  # type: ignore[misc]
    """The connected peers of a host."""

    def __init__(
        self, network: Any, nursery: trio.Nursery, own: str, blame: Blame
    ) -> None:
        self.banned: set[str] = set()
        self.on_connected: list[PeerCallback] = []
        self.on_disconnected: list[PeerCallback] = []
        self._network, self._nursery = network, nursery
        self._own, self._blame = own, blame
        self._present: dict[str, _Presence] = {}
        network.register_notifee(self)

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(presence.now() for presence in self._present.values())

    def live(self, identity: ID) -> list[Any]:
        """Return the open connections with a peer."""
        every = self._network.get_connections(identity)
        return [connection for connection in every if not connection.is_closed]

    def admit(self, peer: str) -> None:
        if peer in self._present:
            self._present[peer].admission.set()

    async def is_admitted(self, peer: str) -> bool:
        """True if hello succeeded with a peer; waits a moment for one under way."""
        presence = self._present.get(peer)
        if presence is not None:
            with trio.move_on_after(ADMISSION_WAIT_S):
                await presence.admission.wait()
                return True
        return False

    async def wait_gone(self, peer: str) -> None:
        if peer in self._present:
            await self._present[peer].gone.wait()

    async def disconnect(self, peer: str) -> None:
        for connection in self._network.get_connections(parse_peer_id(peer)):
            await self._close(connection)

    async def close_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self._network.get_connections():
                nursery.start_soon(self._close, connection)

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        identity: ID = conn.muxed_conn.peer_id
        peer = str(identity)
        if peer in self.banned or peer == self._own:
            self._nursery.start_soon(self._close, conn)
            return
        if peer in self._present:
            if any(one is not conn for one in self.live(identity)):
                return
            self._forget(peer)  # the end of its old connection was not told yet
        addresses = conn.get_transport_addresses()
        info = PeerInfo(
            peer_id=peer,
            address=str(addresses[0]) if addresses else "",
            inbound=not conn.muxed_conn.is_initiator,
            admitted=False,
        )
        self._present[peer] = _Presence(info, trio.Event(), trio.Event())
        for callback in self.on_connected:
            self._nursery.start_soon(self._tell, callback, info)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        identity: ID = conn.muxed_conn.peer_id
        if str(identity) in self._present and not self.live(identity):
            self._forget(str(identity))

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    def _forget(self, peer: str) -> None:
        presence = self._present.pop(peer)
        presence.gone.set()
        for callback in self.on_disconnected:
            self._nursery.start_soon(self._tell, callback, presence.now())

    async def _tell(self, callback: PeerCallback, info: PeerInfo) -> None:
        try:
            await callback(info)
        except Unavailable as error:
            log.debug("%s: %s", info.peer_id, error)
        except ProtocolError as error:
            self._blame(info.peer_id, error)

    async def _close(self, connection: INetConn) -> None:
        with trio.move_on_after(2, shield=True):
            try:
                await connection.close()
            except (BaseLibp2pError, OSError) as error:
                log.debug("closing: %r", error)
