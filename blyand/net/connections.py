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
from blyand.net.places import origin_of
from blyand.net.standing import Standing
from blyand.rules.net.misbehaviour import Blame

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
class Limits:
    """How many inbound connections there may be; ours to others are not counted."""

    per_group: int  # of one /24 or /48
    per_key: int  # connections that a peer may have when it opens another


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
        self,
        network: Any,
        nursery: trio.Nursery,
        own: str,
        blame: Blame,
        standing: Standing,
        limits: Limits,
    ) -> None:
        self.on_connected: list[PeerCallback] = []
        self.on_disconnected: list[PeerCallback] = []
        self._network, self._nursery = network, nursery
        self._own, self._blame = own, blame
        self._standing, self._limits = standing, limits
        self._inbound: dict[str, set[INetConn]] = {}  # by group
        self._present: dict[str, _Presence] = {}
        network.register_notifee(self)

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(presence.now() for presence in self._present.values())

    def info(self, peer: str) -> PeerInfo | None:
        presence = self._present.get(peer)
        return presence.now() if presence is not None else None

    def live(self, identity: ID) -> list[Any]:
        """Return the open connections with a peer."""
        every = self._network.get_connections(identity)
        return [connection for connection in every if not connection.is_closed]

    def address_of(self, peer: str) -> str:
        """Return the address of a connected peer, "" for another."""
        presence = self._present.get(peer)
        return presence.info.address if presence is not None else ""

    def may_enter(self, address: str) -> bool:
        """True if a stranger may connect from an IP address: asked once for each."""
        if not self._has_room(address):
            self._standing.refused("group")
            return False
        return self._standing.may_connect(None, address)

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
        addresses = conn.get_transport_addresses()
        address = str(addresses[0]) if addresses else ""
        inbound = not conn.muxed_conn.is_initiator
        if peer == self._own or not self._may_stay(conn, peer, address, inbound):
            self._nursery.start_soon(self._close, conn)
            return
        if peer in self._present:
            if any(one is not conn for one in self.live(identity)):
                return
            self._forget(peer)  # the end of its old connection was not told yet
        info = PeerInfo(peer, address, inbound, admitted=False)
        self._present[peer] = _Presence(info, trio.Event(), trio.Event())
        for callback in self.on_connected:
            self._nursery.start_soon(self._tell, callback, info)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        identity: ID = conn.muxed_conn.peer_id
        self._leave(conn)
        if str(identity) in self._present and not self.live(identity):
            self._forget(str(identity))

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...
    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...
    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    def _may_stay(self, conn: INetConn, peer: str, address: str, inbound: bool) -> bool:
        """Say whether a new connection is kept; an inbound one then takes its place."""
        if not self._standing.may_connect(peer, address if inbound else ""):
            return False
        if not inbound:
            return True
        others = [one for one in self.live(conn.muxed_conn.peer_id) if one is not conn]
        if len(others) >= self._limits.per_key:
            self._standing.refused("key")
            return False
        if not self._has_room(address):  # others came while it shook hands
            self._standing.refused("group")
            return False
        origin = origin_of(address)
        if origin is not None:
            self._inbound.setdefault(origin.group, set()).add(conn)
        return True

    def _has_room(self, address: str) -> bool:
        origin = origin_of(address)
        here = self._inbound.get(origin.group) if origin is not None else None
        if here is None or len(here) < self._limits.per_group:
            return True
        here -= {conn for conn in here if conn.is_closed}  # its end may not be told yet
        return len(here) < self._limits.per_group

    def _leave(self, conn: INetConn) -> None:
        addresses = conn.get_transport_addresses()
        origin = origin_of(str(addresses[0])) if addresses else None
        here = self._inbound.get(origin.group) if origin is not None else None
        if origin is not None and here is not None:
            here.discard(conn)
            if not here:
                del self._inbound[origin.group]

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
