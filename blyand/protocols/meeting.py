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
    MAX_ADDRESSES,
    PROTOCOL_ID,
    Address,
    Greeting,
    KnownPeers,
)
from blyand.errors import Unavailable
from blyand.events import Broadcast, PeerJoined, PeerLeft
from blyand.net.address import dialable_from, neighbourhood
from blyand.net.connections import PeerInfo
from blyand.net.host import Host
from blyand.net.peers import PeerBook
from blyand.protocols.hello import Greeter, Introduction, OtherNetwork
from blyand.rules.net.book import spread

logger = logging.getLogger(__name__)

EXCHANGED = 24  # peers named in an exchange
RECENT_S = 86_400.0  # a peer that nobody here reached for longer is not named
FIRST_EXCHANGE_S = 2.0  # while there is news and outbound peers are wanted
STRANGERS_S = 3600.0  # for as long a peer of another network counts
MAX_STRANGERS = 1024
EXCHANGE_S = 15.0  # between two exchanges otherwise


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
        book: PeerBook,
        random: Random,
        wanted: int = 8,
    ) -> None:
        """Below `wanted` outbound peers others are asked more often for whom they know."""
        self._random = random
        self._host = host
        self._events = events
        self._book = book
        self._wanted = wanted
        self._met: dict[str, Met] = {}
        self._waiting: dict[str, trio.Event] = {}
        self._strangers: dict[str, float] = {}  # of other networks, the newest last

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

    def strange(self, peer: str) -> None:
        """A peer that greeted is of another network; it is not served (GEN-01)."""
        self._strangers.pop(peer, None)
        self._strangers[peer] = trio.current_time()
        while len(self._strangers) > MAX_STRANGERS:
            self._strangers.pop(next(iter(self._strangers)))

    @property
    def strangers(self) -> int:
        """How many such peers greeted of late."""
        since = trio.current_time() - STRANGERS_S
        return sum(when >= since for when in self._strangers.values())

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Say hello again to one peer after the other: who has joined meanwhile?"""
        task_status.started()
        pause_s = FIRST_EXCHANGE_S
        while True:
            await trio.sleep(self._random.uniform(0.5, 1.5) * pause_s)
            learned = await self._ask_again()
            outbound = sum(not met.info.inbound for met in self._met.values())
            if learned and outbound < self._wanted:
                pause_s = FIRST_EXCHANGE_S
            else:
                pause_s = min(2 * pause_s, EXCHANGE_S)

    async def _ask_again(self) -> int:
        """Exchange peers with one that we met; return how many addresses were new."""
        if not self._met:
            return 0
        peer = self._random.choice(list(self._met))
        try:
            return self.met(peer, await self._greeter.greet(self._host, peer))
        except (Unavailable, ProtocolError) as error:
            logger.debug("no second hello with %s: %s", peer, error)
            return 0

    @property
    def peers(self) -> dict[str, Met]:
        """Peers by id, longest met first."""
        return dict(self._met)

    def known_peers(self, asking: str) -> KnownPeers:
        """Return some of the peers we know at first hand, of many neighbourhoods.

        Those that we met, with the addresses they gave themselves, and those of the
        book that we reached lately; only addresses that the asking peer would dial.
        """
        info = self._host.info(asking)
        if info is None:
            return KnownPeers(())
        known = [
            Address(peer, addresses[:MAX_ADDRESSES])
            for peer, claimed in self._at_first_hand().items()
            if peer != asking and (addresses := dialable_from(info.address, claimed))
        ]
        return KnownPeers(
            tuple(
                spread(
                    known,
                    lambda one: neighbourhood(one.addresses[0]),
                    EXCHANGED,
                    self._random.randrange,
                )
            )
        )

    def _at_first_hand(self) -> dict[str, tuple[str, ...]]:
        found = {
            entry.peer: self._book.addresses(entry.peer)
            for entry in self._book.recent(RECENT_S)
        }
        for peer, met in self._met.items():
            found[peer] = met.greeting.addresses
        return found

    def met(self, peer: str, introduction: Introduction) -> int:
        """A peer introduced itself: serve it from now on.

        Returns how many addresses it told that were new.
        """
        info = self._host.info(peer)
        if info is None:
            return 0
        self._host.admit(peer)
        is_new = peer not in self._met
        since = trio.current_time() if is_new else self._met[peer].since
        self._met[peer] = Met(info, introduction.greeting, since)
        own = Address(peer, introduction.greeting.addresses)
        learned = sum(
            self._book.learn(one.peer, one.addresses, peer, info.address)
            for one in (own, *introduction.known)
        )
        if is_new:
            self._events.publish(PeerJoined(peer))
        self._heard(peer, introduction.greeting)
        self._tell_waiting(peer)
        return learned

    def _tell_waiting(self, peer: str) -> None:
        waiting = self._waiting.pop(peer, None)
        if waiting is not None:
            waiting.set()

    async def greeted(self, peer: str) -> bool:
        """Wait until a connected peer said hello; False when it did not, or left."""
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
        self._tell_waiting(info.peer_id)
        if self._met.pop(info.peer_id, None) is not None:
            self._events.publish(PeerLeft(info.peer_id))
