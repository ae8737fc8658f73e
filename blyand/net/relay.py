"""The relay: places for nodes that cannot be dialled, and circuits to them.

Circuit relay v2, the serving end. The relay moves bytes that it cannot read: the two
ends authenticate and encrypt as on any connection, and say hello. Everything it gives
is bounded by `RelayLimits`, counted by peer and by address. docs/nat.md
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetStream
from multiaddr import Multiaddr

from blyan_proto.errors import ProtocolError, UnexpectedMessage
from blyand.errors import Unavailable
from blyand.net.connections import PeerInfo
from blyand.net.guard import circuit
from blyand.net.guard.circuit import HOP, STOP, HopMessage, StopMessage
from blyand.net.guard.host import reset
from blyand.net.identity import parse_peer_id
from blyand.net.raw import RawStreams, peer_of
from blyand.rules.net.relay import Circuit, Ledger, NoPlace, Refused, RelayLimits

log = logging.getLogger(__name__)

OK = 100
RESERVATION_REFUSED = 200
RESOURCE_LIMIT_EXCEEDED = 201
PERMISSION_DENIED = 202
CONNECTION_FAILED = 203
NO_RESERVATION = 204
MALFORMED_MESSAGE = 400

ADDRESSES_TOLD = 8


class Relay:
    """Gives places and circuits while `serving`. Made by `Host` only."""

    def __init__(
        self,
        streams: RawStreams,
        direct: Callable[[], tuple[str, ...]],
        limits: RelayLimits,
    ) -> None:
        """`direct` names the addresses of this host, with its peer id."""
        self.ledger = Ledger(limits)
        self.serving = False
        self.carried_bytes = 0  # by circuits that have ended
        self._streams, self._direct = streams, direct
        streams.connections.on_disconnected.append(self._left)

    def serve(self, wanted: bool) -> None:
        """Give places and circuits from now on, or to nobody new."""
        if wanted and not self.serving:
            self._streams.handle(HOP, self._hop)
        elif self.serving and not wanted:
            self._streams.refuse(HOP)
        self.serving = wanted

    async def _hop(self, stream: INetStream, peer: str) -> None:
        admitted = await self._streams.connections.is_admitted(peer)
        if not admitted or circuit.is_circuit(stream.muxed_conn):
            await _refuse(stream, PERMISSION_DENIED)
            return
        request = await circuit.receive(stream, HopMessage)
        if request.type == HopMessage.RESERVE:
            await self._reserve(stream, peer)
        elif request.type == HopMessage.CONNECT:
            await self._connect(stream, peer, bytes(request.peer.id))
        else:
            await _refuse(stream, MALFORMED_MESSAGE)
            raise UnexpectedMessage("a relay is asked for a place or a circuit")

    async def _reserve(self, stream: INetStream, peer: str) -> None:
        now = trio.current_time()
        try:
            # The peer of the connection: a request may not speak for another.
            end_s = self.ledger.reserve(peer, self._streams.ip_of(peer), now)
        except Refused:
            await _refuse(stream, RESERVATION_REFUSED)
            return
        answer = _status(OK)
        answer.reservation.expire = int(time.time() + end_s - now)
        for text in self._direct()[:ADDRESSES_TOLD]:
            answer.reservation.addrs.append(Multiaddr(text).to_bytes())
        self._state_limits(answer)
        await circuit.send(stream, answer)

    async def _connect(self, stream: INetStream, source: str, target: bytes) -> None:
        try:
            opened = self.ledger.open(
                source,
                self._streams.ip_of(source),
                peer_of(target),
                trio.current_time(),
            )
        except NoPlace:
            await _refuse(stream, NO_RESERVATION)
            return
        except Refused:
            await _refuse(stream, RESOURCE_LIMIT_EXCEEDED)
            return
        try:
            await self._carry(stream, opened)
        finally:
            self.ledger.close(opened)

    async def _carry(self, stream: INetStream, opened: Circuit) -> None:
        onward = await self._announce(opened)
        if onward is None:
            await _refuse(stream, CONNECTION_FAILED)
            return
        limits = self.ledger.limits
        try:
            answer = _status(OK)
            self._state_limits(answer)
            await circuit.send(stream, answer)
            with self._streams.lasting(HOP, opened.source):
                self.carried_bytes += await circuit.splice(
                    stream,
                    onward,
                    limits.circuit_bytes,
                    limits.circuit_s,
                    limits.idle_s,
                )
        finally:
            await reset(onward)

    async def _announce(self, opened: Circuit) -> INetStream | None:
        """Tell the target who is coming; return the stream to it if it agrees."""
        onward = None
        agreed = False
        try:
            onward = await self._streams.open(opened.target, STOP)
            request = StopMessage(type=StopMessage.CONNECT)
            request.peer.id = parse_peer_id(opened.source).to_bytes()
            self._state_limits(request)
            await circuit.send(onward, request)
            answer = await self._streams.answer(onward, StopMessage)
            agreed = answer.status == OK
        except Unavailable as error:
            log.debug("no circuit to %s: %s", opened.target, error)
        except ProtocolError as error:  # the target's fault, not the asker's
            self._streams.blame(opened.target, error)
        finally:
            if onward is not None and not agreed:
                await reset(onward)
        return onward if agreed else None

    def _state_limits(self, message: Any) -> None:
        message.limit.duration = int(self.ledger.limits.circuit_s)
        message.limit.data = self.ledger.limits.circuit_bytes

    async def _left(self, info: PeerInfo) -> None:
        self.ledger.release(info.peer_id)


def _status(code: int) -> Any:
    message: Any = HopMessage(type=HopMessage.STATUS)
    message.status = code
    return message


async def _refuse(stream: INetStream, code: int) -> None:
    await circuit.send(stream, _status(code))
