"""Meeting peers: every connection begins with hello, and ends without it (DEC-C7)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.hello import (
    DEADLINE_S,
    PROTOCOL_ID,
    Address,
    Greeting,
    KnownPeers,
)
from blyand.errors import Unavailable
from blyand.events import Broadcast, PeerJoined, PeerLeft
from blyand.net.connections import PeerInfo
from blyand.net.host import Host
from blyand.protocols.hello import Greeter, Introduction, OtherNetwork

logger = logging.getLogger(__name__)

EXCHANGED = 16  # peers named to a newcomer
FIRST_EXCHANGE_S = 2.0  # those who came at the same moment know only the bootstrap
EXCHANGE_S = 15.0  # between two exchanges after the first


@dataclass(frozen=True)
class Met:
    """A peer that said hello."""

    info: PeerInfo
    greeting: Greeting
    since: float  # trio time


class Meeting:
    """The peers that said hello on their connection."""

    def __init__(
        self,
        host: Host,
        events: Broadcast,
        learn: Callable[[str, str, tuple[Address, ...]], None],
        random: Random,
    ) -> None:
        """`learn(from peer, its address, addresses)` takes peer exchange in."""
        self._random = random
        self._host = host
        self._events = events
        self._learn = learn
        self._met: dict[str, Met] = {}
        self._waiting: dict[str, trio.Event] = {}

    def start(self, greeter: Greeter, heard: Callable[[str, Greeting], None]) -> None:
        """Answer hellos from now on, and say hello on every connection we made.

        `heard` is told what each peer says of itself.
        """
        self._greeter = greeter
        self._heard = heard
        self._host.handle(
            PROTOCOL_ID, greeter.serve(), deadline_s=DEADLINE_S, before_hello=True
        )
        self._host.on_connected(self._joined)
        self._host.on_disconnected(self._left)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Say hello again to one peer after the other: who has joined meanwhile?"""
        task_status.started()
        pause_s = FIRST_EXCHANGE_S
        while True:
            await trio.sleep(self._random.uniform(0.5, 1.5) * pause_s)
            pause_s = EXCHANGE_S
            if self._met:
                peer = self._random.choice(list(self._met))
                try:
                    self.met(peer, await self._greeter.greet(self._host, peer))
                except (Unavailable, ProtocolError) as error:
                    logger.debug("no second hello with %s: %s", peer, error)

    @property
    def peers(self) -> dict[str, Met]:
        """Peers by id, longest met first."""
        return dict(self._met)

    def known_peers(self, asking: str) -> KnownPeers:
        """Return a few peers, with the addresses that they gave themselves."""
        others = [met for peer, met in self._met.items() if peer != asking]
        return KnownPeers(
            tuple(
                Address(met.info.peer_id, met.greeting.addresses)
                for met in others[-EXCHANGED:]
                if met.greeting.addresses
            )
        )

    def met(self, peer: str, introduction: Introduction) -> None:
        """A peer introduced itself: serve it from now on."""
        info = next((p for p in self._host.peers() if p.peer_id == peer), None)
        if info is None:
            return
        self._host.admit(peer)
        is_new = peer not in self._met
        since = trio.current_time() if is_new else self._met[peer].since
        self._met[peer] = Met(info, introduction.greeting, since)
        own = introduction.greeting.addresses
        named = introduction.known
        if own:
            named = (Address(peer, own), *named)
        self._learn(peer, info.address, named)
        if is_new:
            self._events.publish(PeerJoined(peer))
        self._heard(peer, introduction.greeting)
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            waiting.set()

    async def greeted(self, peer: str) -> bool:
        """Wait until a connected peer said hello; False when it did not in time."""
        if peer not in self._met:
            event = self._waiting.setdefault(peer, trio.Event())
            with trio.move_on_after(DEADLINE_S):
                await event.wait()
        return peer in self._met

    async def _joined(self, info: PeerInfo) -> None:
        peer = info.peer_id
        if info.inbound:
            if not await self.greeted(peer):
                await self._host.disconnect(peer)
            return
        try:
            self.met(peer, await self._greeter.greet(self._host, peer))
        except OtherNetwork as error:
            logger.warning("refused: %s", error)
            await self._host.disconnect(peer)
        except (Unavailable, ProtocolError) as error:
            logger.info("no hello with %s: %s", peer, error)
            await self._host.disconnect(peer)

    async def _left(self, info: PeerInfo) -> None:
        self._waiting.pop(info.peer_id, None)
        if self._met.pop(info.peer_id, None) is not None:
            self._events.publish(PeerLeft(info.peer_id))
