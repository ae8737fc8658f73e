"""The gossipsub router: whom a message goes to, and who is worth being in the mesh.

Speaks gossipsub 1.1 and 1.2 behind libp2p's public router interface; its own is not
used (docs/decisions/0010-a-gossip-router-of-our-own.md). Decides on local state only, never
waits, and never raises for what a peer sent: what is too much is cut, and counted.
docs/protocols/gossip.md
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any

import trio
from libp2p.abc import IPubsubRouter
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from blyand.net.offers import Contact, Controls, Offers, sane
from blyand.net.outbox import Outbox, publish_field
from blyand.rules.net.score import GOSSIP_FLOOR, GRAYLIST, MESH_FLOOR, Scores, is_silent

PROTOCOLS = ("/meshsub/1.2.0", "/meshsub/1.1.0")
HEARTBEAT_S = 1.0
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
DEGREE_BEST = 4  # kept for their score when the mesh is too large; the rest by lot
DEGREE_OUTBOUND = 2  # that we dialled: nobody fills a mesh by dialling us
LAZY_DEGREE, LAZY_PART = 6, 0.25  # peers outside the mesh that are told of ids
BACKOFF_S, BACKOFF_MAX_S = 60, 600
MAX_BACKOFFS = 4096
IDONTWANT_BYTES = 4096  # below, a second copy is cheaper than telling peers so
ITEMS_PER_RPC = 64  # control messages of a kind that are looked at
ROOM_S = 1.0  # that a sender waits for a full queue
REPLACE_BEATS = 30  # between two replacements of silent peers in a topic


@dataclass
class Link:
    """A peer in the mesh of a topic."""

    since: float
    could_tell: int  # small messages accepted in the topic before it joined
    told: int = 0


class Mesh(IPubsubRouter):  # type: ignore[misc]
    """Which peers get what; driven by pubsub's calls and by a heartbeat."""

    def __init__(
        self,
        on_beat: Callable[[], None],
        on_full: Callable[[ID, str], None],  # a message did not fit into a queue
        luck: random.Random | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.mesh: dict[str, dict[ID, Link]] = {}
        self.scores = Scores()
        self.contacts: dict[ID, Contact] = {}
        self._came = trio.Event()  # a contact was made
        self._on_beat, self._on_full, self._clock = on_beat, on_full, clock
        self._luck = luck or random.Random()
        self._pubsub: Any = None
        self.offers = Offers(self.scores, self._luck, lambda i: self._pubsub.knows(i))
        self._small: dict[str, int] = {}  # accepted messages of a topic that are small
        self._backoff: dict[tuple[str, ID], float] = {}
        self._beats = 0

    # libp2p's pubsub calls these

    def get_protocols(self) -> list[Any]:
        return list(PROTOCOLS)

    def attach(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    def add_peer(self, peer_id: ID, protocol_id: Any) -> None:
        if protocol_id not in PROTOCOLS:
            raise ValueError(f"not a protocol of ours: {protocol_id}")

    def remove_peer(self, peer_id: ID) -> None:
        self.contacts.pop(peer_id, None)
        for links in self.mesh.values():
            links.pop(peer_id, None)

    async def join(self, topic: str) -> None:
        if topic not in self.mesh:
            self.mesh[topic] = {}
            self._small[topic] = 0
            controls = Controls()
            self._fill(topic, DEGREE, controls)
            self._send(controls)

    async def leave(self, topic: str) -> None:
        controls = Controls()
        for peer in list(self.mesh.get(topic, ())):
            self._prune(topic, peer, controls)
        self.mesh.pop(topic, None)
        self._send(controls)

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        links = self.mesh.get(topic)
        if links is not None and len(links) < DEGREE_LOW and peer_id not in links:
            if peer_id in self._candidates(topic):
                controls = Controls()
                self._graft(topic, peer_id, controls)
                self._send(controls)

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """A peer can be written to, or subscribed to something."""
        queue = self._pubsub.peer_queues.get(peer_id)
        stream = self._pubsub.peers.get(peer_id)
        known = self.contacts.get(peer_id)
        if queue is None or stream is None or (known and known.outbox is queue):
            return
        if not isinstance(queue, Outbox):  # made just now, nothing is in it
            queue = self._pubsub.peer_queues[peer_id] = Outbox()
        self.contacts[peer_id] = Contact(queue, stream.muxed_conn.is_initiator)
        self._came.set()
        self._came = trio.Event()
        for topic in self.mesh:
            await self.on_peer_subscribed(peer_id, topic)

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Offer a peer that just came what was said while it was not here."""
        contact, controls = self.contacts.get(peer_id), Controls()
        if contact is not None and topic not in contact.greeted:
            contact.greeted.add(topic)
            self.offers.offer(topic, peer_id, controls)
        self._send(controls)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Send a message to whom it concerns, except those that are known to have it."""
        await self.forward(
            pubsub_msg.topicIDs[0],
            pubsub_msg.from_id + pubsub_msg.seqno,
            publish_field(pubsub_msg.SerializeToString()),
            (msg_forwarder, ID(pubsub_msg.from_id)),
        )

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Obey the part of a control message that concerns our topics, bounded."""
        contact = self.contacts.get(sender_peer_id)
        if contact is None:
            return
        now, control, controls = self._clock(), rpc.control, Controls()
        for prune in islice(control.prune, ITEMS_PER_RPC):
            self._pruned(prune.topicID, sender_peer_id, prune.backoff, now)
        for graft in islice(control.graft, ITEMS_PER_RPC):
            self._grafted(graft.topicID, sender_peer_id, controls, now)
        for unwanted in islice(control.idontwant, ITEMS_PER_RPC):
            contact.outbox.refuse(sane(unwanted.messageIDs))
        if self.score(sender_peer_id, now) >= GOSSIP_FLOOR:
            for have in islice(control.ihave, ITEMS_PER_RPC):
                if have.topicID in self.mesh:
                    offer = have.messageIDs
                    self.offers.ask(contact, sender_peer_id, offer, controls, now)
            for want in islice(control.iwant, ITEMS_PER_RPC):
                self.offers.give(contact, sender_peer_id, want.messageIDs)
        self._send(controls)

    # Our own pubsub calls these

    async def wait_contact(self, peer: ID) -> None:
        """Return once a peer can be written to."""
        while peer not in self.contacts:
            await self._came.wait()

    def score(self, peer: ID, now: float | None = None) -> float:
        return self.scores.of(peer, self._clock() if now is None else now)

    def is_graylisted(self, peer: ID) -> bool:
        return self.score(peer) < GRAYLIST

    def punish(self, peer: ID) -> None:
        """A peer forwarded an invalid message."""
        now = self._clock()
        self.scores.invalid(peer, now)
        if self.score(peer, now) < MESH_FLOOR:
            controls = Controls()
            for topic, links in self.mesh.items():
                if peer in links:
                    self._prune(topic, peer, controls)
            self._send(controls)

    def told(self, peer: ID, topic: str, identity: bytes) -> None:
        """A peer sent a message, or a copy of one."""
        link = self.mesh.get(topic, {}).get(peer)
        if link is not None:
            link.told += 1
        contact = self.contacts.get(peer)
        if contact is not None:
            self.offers.arrived(contact, identity)

    def verified(self, peer: ID, topic: str, identity: bytes, size: int) -> None:
        """A message is what its author said: copies of a large one are not needed."""
        if size < IDONTWANT_BYTES:
            return
        controls = Controls()
        for other in self.mesh.get(topic, ()):
            if other != peer:
                controls.to(other).idontwant.add(messageIDs=[identity])
        self._send(controls)

    def accepted(self, peer: ID, topic: str, size: int) -> None:
        """What a peer forwarded was new and good."""
        self.scores.first(peer, self._clock())
        if size < IDONTWANT_BYTES and topic in self._small:
            self._small[topic] += 1

    def recipients(self, topic: str) -> list[ID]:
        """Return the peers that get a message of `topic`."""
        chosen = [peer for peer in self.mesh.get(topic, ()) if peer in self.contacts]
        if len(chosen) < DEGREE_LOW:
            others = [p for p in self._candidates(topic, True) if p not in chosen]
            missing = min(DEGREE - len(chosen), len(others))
            chosen += self._luck.sample(others, missing)
        return chosen

    async def forward(
        self, topic: str, identity: bytes, message: bytes, having: Collection[ID]
    ) -> None:
        """Queue a message for its recipients, waiting a moment where a queue is full.

        `message` is the field of an RPC; peers `having` it do not get it.
        """
        self.offers.recent.put(identity, topic, message)
        contacts = [
            (peer, self.contacts[peer])
            for peer in self.recipients(topic)
            if peer not in having
        ]
        contacts.sort(key=lambda pair: pair[1].outbox.is_half_full())
        for peer, contact in contacts:
            outbox = contact.outbox
            if outbox.is_half_full() and not outbox.stalled:
                with trio.move_on_after(ROOM_S) as scope:
                    await outbox.wait_room()
                outbox.stalled = scope.cancelled_caught
            if not outbox.put(identity, message):
                self._on_full(peer, topic)

    # The heartbeat

    async def run(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            self.beat()

    def beat(self) -> None:
        """Mend the meshes, offer what is new, forget what is old."""
        now, controls = self._clock(), Controls()
        self._beats += 1
        for topic in self.mesh:
            self._mend(topic, controls, now)
            self._tell_some(topic, controls, now)
        self._send(controls)
        self.offers.beat(self.contacts, now)
        for contact in self.contacts.values():
            contact.outbox.beat()
        if self._beats % 16 == 0:
            self._backoff = {k: u for k, u in self._backoff.items() if u > now}
        self._on_beat()

    def _mend(self, topic: str, controls: Controls, now: float) -> None:
        links = self.mesh[topic]
        listening = self._pubsub.peer_topics.get(topic, ())
        for peer in list(links):
            if self.score(peer, now) < MESH_FLOOR:
                self._prune(topic, peer, controls)
            elif peer not in listening or peer not in self.contacts:
                del links[peer]
        if len(links) < DEGREE_LOW:
            self._fill(topic, DEGREE, controls)
        elif self._beats % REPLACE_BEATS == 0 and len(links) >= DEGREE:
            self._replace(topic, controls, now)
        if len(links) > DEGREE_HIGH:
            self._shrink(topic, controls, now)
        missing = DEGREE_OUTBOUND - sum(self.contacts[p].outbound for p in links)
        if missing > 0 and len(links) >= DEGREE_LOW:
            dialled = [p for p in self._candidates(topic) if self.contacts[p].outbound]
            for peer in self._luck.sample(dialled, min(missing, len(dialled))):
                self._graft(topic, peer, controls)

    def _fill(self, topic: str, degree: int, controls: Controls) -> None:
        free = self._candidates(topic)
        missing = min(degree - len(self.mesh[topic]), len(free))
        for peer in self._luck.sample(free, max(0, missing)):
            self._graft(topic, peer, controls)

    def _shrink(self, topic: str, controls: Controls, now: float) -> None:
        peers = list(self.mesh[topic])
        self._luck.shuffle(peers)
        peers.sort(key=lambda peer: self.score(peer, now), reverse=True)
        best, others = peers[:DEGREE_BEST], peers[DEGREE_BEST:]
        self._luck.shuffle(others)
        dialled = sum(self.contacts[peer].outbound for peer in best)
        spare = max(0, DEGREE_OUTBOUND - dialled)
        others.sort(key=lambda peer: self.contacts[peer].outbound, reverse=True)
        kept, drawn = others[:spare], others[spare:]
        self._luck.shuffle(drawn)
        for peer in (kept + drawn)[DEGREE - DEGREE_BEST :]:
            self._prune(topic, peer, controls)

    def _replace(self, topic: str, controls: Controls, now: float) -> None:
        """Let a peer that never tells us anything give way, if there is another."""
        free = self._candidates(topic)
        small = self._small[topic]
        for peer, link in self.mesh[topic].items():
            if free and is_silent(small - link.could_tell, link.told, now - link.since):
                self._prune(topic, peer, controls)
                self._graft(topic, self._luck.choice(free), controls)
                return

    def _tell_some(self, topic: str, controls: Controls, now: float) -> None:
        links = self.mesh[topic]
        lazy = [
            peer
            for peer in self._pubsub.peer_topics.get(topic, ())
            if peer not in links
            and peer in self.contacts
            and self.score(peer, now) >= GOSSIP_FLOOR
        ]
        wanted = max(LAZY_DEGREE, int(len(lazy) * LAZY_PART))
        for peer in self._luck.sample(lazy, min(wanted, len(lazy))):
            self.offers.offer(topic, peer, controls)

    # Single steps

    def _candidates(self, topic: str, even_in_backoff: bool = False) -> list[ID]:
        now, links = self._clock(), self.mesh.get(topic, {})
        return [
            peer
            for peer in self._pubsub.peer_topics.get(topic, ())
            if peer in self.contacts
            and peer not in links
            and self.score(peer, now) >= MESH_FLOOR
            and (even_in_backoff or self._backoff.get((topic, peer), 0.0) <= now)
        ]

    def _graft(self, topic: str, peer: ID, controls: Controls) -> None:
        self.mesh[topic][peer] = Link(self._clock(), self._small[topic])
        controls.to(peer).graft.add(topicID=topic)

    def _prune(self, topic: str, peer: ID, controls: Controls) -> None:
        self.mesh[topic].pop(peer, None)
        self._back_off(topic, peer, BACKOFF_S)
        controls.to(peer).prune.add(topicID=topic, backoff=BACKOFF_S)

    def _back_off(self, topic: str, peer: ID, seconds: float) -> None:
        until = max(self._clock() + seconds, self._backoff.pop((topic, peer), 0.0))
        while len(self._backoff) >= MAX_BACKOFFS:
            del self._backoff[next(iter(self._backoff))]
        self._backoff[topic, peer] = until

    def _grafted(self, topic: str, peer: ID, controls: Controls, now: float) -> None:
        links = self.mesh.get(topic)
        if links is None or peer in links:
            return  # of a topic that we do not have: not worth an answer
        if self._backoff.get((topic, peer), 0.0) > now:
            self.scores.broken(peer, now)
            self._prune(topic, peer, controls)
        elif self.score(peer, now) < MESH_FLOOR or (
            len(links) >= DEGREE_HIGH and not self.contacts[peer].outbound
        ):
            self._prune(topic, peer, controls)
        else:
            links[peer] = Link(now, self._small[topic])

    def _pruned(self, topic: str, peer: ID, seconds: int, now: float) -> None:
        links = self.mesh.get(topic)
        if links is not None:
            links.pop(peer, None)
            self._back_off(topic, peer, min(seconds or BACKOFF_S, BACKOFF_MAX_S))

    def _send(self, controls: Controls) -> None:
        for peer, rpc in controls.bodies.items():
            contact = self.contacts.get(peer)
            if contact is not None:
                contact.outbox.push(rpc, True)
