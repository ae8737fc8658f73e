"""Circuits: the places that we hold at relays, and connections through relays.

Circuit relay v2, the two ends that a relay joins. A relay is a peer like any other: it
is dialled only as its address allows (DEC-C9), serves us after hello, and what it says
about the other end counts for nothing before that end has authenticated itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from multiaddr import Multiaddr

from blyan_proto.errors import DecodeError, UnexpectedMessage
from blyand.errors import Busy, NoRoute, NotHere
from blyand.net.address import CircuitAddress, Endpoint, may_dial, parse
from blyand.net.connections import PeerInfo
from blyand.net.guard import circuit
from blyand.net.guard.circuit import HOP, STOP, HopMessage, StopMessage
from blyand.net.guard.host import reset
from blyand.net.identity import parse_peer_id
from blyand.net.raw import RawStreams, peer_of
from blyand.net.relay import ADDRESSES_TOLD, OK

log = logging.getLogger(__name__)

CONNECT_DEADLINE_S = 9.0
ADDRESSES_PER_PLACE = 2
SHORTEST_PLACE_S, LONGEST_PLACE_S = 60.0, 3600.0
MAX_INBOUND = 32  # circuits that others opened to us


@dataclass(frozen=True)
class _Place:
    end_s: float  # trio time
    addresses: tuple[str, ...]  # of the circuit, without our peer id


class Circuits:
    """What this host has at relays. Made by `Host` only."""

    def __init__(
        self, streams: RawStreams, connect: Callable[[str], Awaitable[str]]
    ) -> None:
        """`connect` dials an address, or finds the peer connected."""
        self._streams, self._connect = streams, connect
        self._places: dict[str, _Place] = {}
        self._inbound = 0
        streams.connections.on_disconnected.append(self._left)
        streams.handle(STOP, self._stop)

    @property
    def places(self) -> tuple[str, ...]:
        """The relays at which we hold a place."""
        return tuple(self._places)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where we can be reached through relays, without /p2p/<our id>."""
        if not self._places:
            return ()
        now = trio.current_time()
        held = [place for place in self._places.values() if place.end_s > now]
        return tuple(one for place in held for one in place.addresses)

    async def reserve(self, peer: str) -> float:
        """Take or renew a place at a connected peer; return for how many seconds.

        Busy when it has none left, another Unavailable when it is no relay.
        """
        info = self._streams.info(peer)
        stream = await self._streams.open(peer, HOP)
        try:
            await circuit.send(stream, HopMessage(type=HopMessage.RESERVE))
            answer = await self._streams.answer(stream, HopMessage)
        finally:
            await reset(stream)
        if answer.status != OK:
            raise Busy(f"{peer} gives no place: status {answer.status}")
        # Its clock is not ours: whatever it says, we come back within an hour.
        told_s = int(answer.reservation.expire) - time.time()
        left_s = min(max(told_s, SHORTEST_PLACE_S), LONGEST_PLACE_S)
        told = [bytes(raw) for raw in answer.reservation.addrs[:ADDRESSES_TOLD]]
        addresses = _addresses(peer, info, told)
        if not addresses:
            raise NotHere(f"{peer} has no address at which it may be dialled")
        self._places[peer] = _Place(trio.current_time() + left_s, addresses)
        return left_s

    def give_up(self, peer: str) -> None:
        """Name a place no longer; the relay forgets it by itself."""
        self._places.pop(peer, None)

    async def dial(self, address: CircuitAddress) -> None:
        """Connect to a peer that holds a place at a relay. NoRoute when it fails."""
        if address.peer is None or address.relay.peer is None:
            raise DecodeError("an address at a relay names the relay and the peer")
        target, relay = parse_peer_id(address.peer), address.relay.peer
        await self._connect(f"{address.relay.text}/p2p/{relay}")
        stream = await self._streams.open(relay, HOP)
        upgraded = False
        try:
            request = HopMessage(type=HopMessage.CONNECT)
            request.peer.id = target.to_bytes()
            await circuit.send(stream, request)
            answer = await self._streams.answer(stream, HopMessage, CONNECT_DEADLINE_S)
            if answer.status != OK:
                raise NoRoute(f"{relay} does not connect: status {answer.status}")
            raw = circuit.circuit_over(stream, Multiaddr(address.text), True)
            await self._streams.swarm.upgrade_outbound_raw_conn(raw, target)
            upgraded = True
        except (BaseLibp2pError, OSError) as error:
            raise NoRoute(f"no connection through {relay}: {error}") from error
        finally:
            if not upgraded:
                await reset(stream)

    async def _stop(self, stream: INetStream, relay: str) -> None:
        """A relay has somebody for us: only one at which we hold a place may."""
        place = self._places.get(relay)
        if place is None or self._inbound >= MAX_INBOUND:
            raise NotHere(f"no circuits from {relay}")
        self._inbound += 1
        try:
            request = await circuit.receive(stream, StopMessage)
            if request.type != StopMessage.CONNECT:
                raise UnexpectedMessage("a relay announces a circuit")
            peer_of(bytes(request.peer.id))  # hearsay: the handshake decides
            agreed: Any = StopMessage(type=StopMessage.STATUS)
            agreed.status = OK
            await circuit.send(stream, agreed)
            address = Multiaddr(place.addresses[0])
            raw = circuit.circuit_over(stream, address, False)
            muxed = await circuit.accept(self._streams.swarm, raw, address)
            if muxed is not None:
                with self._streams.lasting(STOP, relay):
                    await muxed.event_closed.wait()
        finally:
            self._inbound -= 1

    async def _left(self, info: PeerInfo) -> None:
        self.give_up(info.peer_id)


def _addresses(peer: str, info: PeerInfo, told: list[bytes]) -> tuple[str, ...]:
    """Where others find a relay: where we dialled it, then what it says of itself."""
    known = parse(info.address)
    found: dict[Endpoint, None] = {}
    if not info.inbound:
        found[known._replace(peer=peer)] = None
    for raw in told:
        try:
            endpoint = parse(str(Multiaddr(raw)))
        except (ValueError, DecodeError):
            continue
        if endpoint.peer in (None, peer) and may_dial(endpoint, known):
            found[endpoint._replace(peer=peer)] = None
    chosen = list(found)[:ADDRESSES_PER_PLACE]
    return tuple(CircuitAddress(endpoint, None).text for endpoint in chosen)
