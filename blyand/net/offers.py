"""Telling peers of messages by their ids, asking for them, and giving them (IHAVE, IWANT).

What the mesh lost or never carried arrives this way. Everything is bounded for each
peer and heartbeat; a peer that offers what it does not deliver breaks a promise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from blyand.net.outbox import Outbox
from blyand.net.recall import Recent
from blyand.rules.net.score import Scores

IDS_EACH_BEAT = 512  # offered to, asked of and given to one peer in a heartbeat
WANTED_S = 3.0  # an id that was asked for is not asked for again
MAX_WANTED = 8192
MAX_ID_BYTES = 256


@dataclass
class Contact:
    """What the router keeps of a connected peer."""

    outbox: Outbox
    outbound: bool  # we dialled it
    offered: int = 0  # ids, in this heartbeat
    asked: int = 0
    greeted: set[str] = field(default_factory=set)  # topics, in this heartbeat
    promise: tuple[bytes, float] | None = None  # an id it offered, and until when


@dataclass
class Controls:
    """Control messages that leave together, a body for each peer."""

    bodies: dict[ID, Any] = field(default_factory=dict)

    def to(self, peer: ID) -> Any:
        return self.bodies.setdefault(peer, rpc_pb2.RPC()).control


class Offers:
    """What we offer and are offered."""

    def __init__(
        self, scores: Scores, luck: random.Random, knows: Callable[[bytes], bool]
    ) -> None:
        self.recent = Recent()
        self._scores, self._luck, self._knows = scores, luck, knows
        self._wanted: dict[bytes, float] = {}  # id -> until when not asked for again

    def offer(self, topic: str, peer: ID, controls: Controls) -> None:
        """Tell a peer what was said lately."""
        identities = self.recent.offered(topic)
        if len(identities) > IDS_EACH_BEAT:
            identities = self._luck.sample(identities, IDS_EACH_BEAT)
        if identities:
            controls.to(peer).ihave.add(topicID=topic, messageIDs=identities)

    def ask(
        self, contact: Contact, peer: ID, offer: Any, controls: Controls, now: float
    ) -> None:
        """Ask for what is new to us among the ids that a peer offers."""
        new = []
        for identity in sane(offer):
            if contact.offered >= IDS_EACH_BEAT:
                break
            contact.offered += 1
            if identity not in self._wanted and not self._knows(identity):
                if len(self._wanted) < MAX_WANTED:
                    self._wanted[identity] = now + WANTED_S
                new.append(identity)
        if new:
            controls.to(peer).iwant.add(messageIDs=new)
            if contact.promise is None:
                contact.promise = (self._luck.choice(new), now + WANTED_S)

    def give(self, contact: Contact, peer: ID, wanted: Any) -> None:
        """Queue what a peer asks for, as far as we still have it."""
        for identity in sane(wanted):
            if contact.asked >= IDS_EACH_BEAT:
                return
            contact.asked += 1
            message = self.recent.get(identity, peer)
            if message is not None:
                contact.outbox.put(identity, message)

    def arrived(self, contact: Contact, identity: bytes) -> None:
        """A peer sent a message: if it was promised, the promise is kept."""
        if contact.promise is not None and contact.promise[0] == identity:
            contact.promise = None

    def beat(self, contacts: dict[ID, Contact], now: float) -> None:
        """Close the accounts of a heartbeat."""
        self.recent.beat()
        for peer, contact in contacts.items():
            contact.offered = contact.asked = 0
            contact.greeted.clear()
            if contact.promise is not None and contact.promise[1] < now:
                if not self._knows(contact.promise[0]):
                    self._scores.broken(peer, now)
                contact.promise = None
        self._wanted = {i: until for i, until in self._wanted.items() if until > now}


def sane(identities: Iterable[bytes], most: int = IDS_EACH_BEAT) -> Iterable[bytes]:
    """Return the first ids that may be ids."""
    return (one for one in islice(identities, most) if 0 < len(one) <= MAX_ID_BYTES)
