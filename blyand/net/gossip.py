"""Broadcast over gossipsub: bounded topics, and a verdict of three values on arrival.

Strategy. A check is cheap and never raises into the transport: what it accepts is
forwarded, what it ignores is dropped without a word, what it rejects costs the peer
that forwarded it. Only the guard's pubsub calls `judge`; one of the four boundaries.
What is dropped for want of room is counted and said. docs/protocols/gossip.md
"""

from __future__ import annotations

import enum
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import IHost
from libp2p.tools.anyio_service import background_trio_service

from blyan_proto.errors import LimitExceeded, ProtocolError, UnexpectedMessage
from blyan_proto.topics import TOPICS, Topic
from blyand.errors import LocalFault
from blyand.metrics import Metrics
from blyand.net.guard.gossip import GuardedPubsub
from blyand.net.identity import parse_peer_id
from blyand.net.mesh import Mesh
from blyand.net.stream import Traffic
from blyand.rules.net.misbehaviour import Blame
from blyand.rules.net.score import GRAYLIST
from blyand.rules.verdict import Ignore, Reject

log = logging.getLogger(__name__)

GOSSIP = "gossip"  # the name under which traffic is counted
SAID_EVERY_S = 60.0  # one line about a peer whose messages are dropped
MAX_SAID = 1024  # peers whose line is remembered


class Verdict(enum.Enum):
    """What becomes of a gossip message."""

    ACCEPT = "accept"  # forward it
    IGNORE = "ignore"  # drop it; nobody's fault
    REJECT = "reject"  # drop it; the forwarder should have known


Check = Callable[[str, bytes], Awaitable[Verdict]]
# (what, id, bytes, error) of an item on which our own code fell over (DEC-C2)
Poison = Callable[[str, bytes, bytes, Exception], None]

_FORWARD = {Verdict.ACCEPT: True, Verdict.IGNORE: None, Verdict.REJECT: False}


class Gossip:
    """Publishes to topics and hands every message that arrives to the topic's check."""

    def __init__(
        self,
        host: IHost,
        network: bytes,
        blame: Blame,
        poison: Poison,
        fail: Callable[[LocalFault], None],
        traffic: Traffic,
        metrics: Metrics | None = None,
    ) -> None:
        self._blame, self._poison, self._fail = blame, poison, fail
        self._metrics = metrics or Metrics()
        self._names = {topic: topic.on(network) for topic in TOPICS}
        self._topics = {name: topic.name for topic, name in self._names.items()}
        self._checks: dict[str, Check] = {}
        self._said: dict[str, tuple[float, int]] = {}  # peer -> when; dropped since
        self._mesh = Mesh(self._measure, self._queue_full)
        self._pubsub = GuardedPubsub(
            host,
            self._mesh,
            limits={name: topic.max_bytes for topic, name in self._names.items()},
            judge=self._judge,
            blame=blame,
            count=lambda up, down: traffic.add(GOSSIP, up, down),
            dropped=self._dropped,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Gossip while the block runs; the host must be running already."""
        async with background_trio_service(self._pubsub):
            await self._pubsub.wait_until_ready()
            yield

    async def publish(self, topic: Topic, raw: bytes) -> None:
        """Broadcast a message. It does not come back to our own check.

        Waits while the peers that get it have too much waiting, a second for each at
        most. Raises LimitExceeded above the topic's bound.
        """
        if len(raw) > topic.max_bytes:
            raise LimitExceeded(f"{len(raw)} bytes on {topic.name}")
        await self._pubsub.publish(self._names[topic], raw)

    async def listen(self, topic: Topic, check: Check) -> None:
        """From now on hand every message on `topic` to `check(peer, raw)`.

        `peer` forwarded it, not necessarily its author. The check returns a Verdict, or
        raises Ignore, Reject or ProtocolError; whatever else leaves it is a bug of
        ours: logged as BROKEN, kept, ignored. Copies are checked once.
        """
        name = self._names[topic]
        assert name not in self._checks, f"two checks for {topic.name}"
        self._checks[name] = check
        await self._pubsub.subscribe(name)

    def peers(self, topic: Topic) -> tuple[str, ...]:
        """Return the connected peers that listen to `topic`."""
        listeners: Any = self._pubsub.peer_topics.get(self._names[topic], ())
        return tuple(str(peer) for peer in listeners)

    def mesh(self, topic: Topic) -> tuple[str, ...]:
        """Return the peers that messages on `topic` are exchanged with at once."""
        return tuple(str(peer) for peer in self._mesh.mesh.get(self._names[topic], ()))

    def score(self, peer: str) -> float:
        """Return what a peer's gossip is worth: 0 to begin with, negative is bad."""
        return self._mesh.score(parse_peer_id(peer))

    def forgive(self, peer: str) -> None:
        """Let a peer's score start anew."""
        self._mesh.scores.forgive(parse_peer_id(peer))

    def ignore(self, is_ignored: Callable[[str], bool]) -> None:
        """Drop, unread and not as seen, what comes from whom `is_ignored(peer)` names."""
        self._pubsub.is_ignored = is_ignored

    async def _judge(self, peer: str, name: str, raw: bytes) -> bool | None:
        verdict = await self._verdict(peer, name, raw)
        topic = self._topics[name]
        self._metrics.counter(
            "blyan_net_gossip_verdicts", topic=topic, verdict=verdict.value
        ).add()
        return _FORWARD[verdict]

    async def _verdict(self, peer: str, name: str, raw: bytes) -> Verdict:
        check = self._checks.get(name)
        if check is None:
            return Verdict.IGNORE
        try:
            verdict = await check(peer, raw)
        except Ignore:
            return Verdict.IGNORE
        except (ProtocolError, Reject) as error:
            self._blame(peer, error)
            return Verdict.REJECT
        except LocalFault as error:
            self._fail(error)
            return Verdict.IGNORE
        except Exception as error:
            identity = hashlib.blake2b(raw, digest_size=32).digest()
            self._poison("gossip message", identity, raw, error)
            return Verdict.IGNORE
        if verdict is Verdict.REJECT:
            self._blame(peer, UnexpectedMessage(f"on {name}: rejected"))
        return verdict

    # What is counted and said

    def _dropped(self, peer: str, name: str, reason: str) -> None:
        topic = self._topics.get(name, "")
        self._metrics.counter(
            "blyan_net_gossip_drops", topic=topic, reason=reason
        ).add()
        now = trio.current_time()
        when, untold = self._said.pop(peer, (now - SAID_EVERY_S, 0))
        if now - when >= SAID_EVERY_S:
            log.warning(
                "gossip with %s: dropped (%s%s), and %d before",
                peer,
                reason,
                f" on {topic}" if topic else "",
                untold,
            )
            when, untold = now, -1
        while len(self._said) >= MAX_SAID:
            del self._said[next(iter(self._said))]
        self._said[peer] = (when, untold + 1)

    def _queue_full(self, peer: Any, name: str) -> None:
        self._dropped(str(peer), name, "queue")

    def _measure(self) -> None:
        """Set the gauges; called at each heartbeat."""
        contacts = self._mesh.contacts
        gauge = self._metrics.gauge
        waiting = [len(contact.outbox) for contact in contacts.values()]
        gauge("blyan_net_gossip_queue", which="sum").set(sum(waiting))
        gauge("blyan_net_gossip_queue", which="longest").set(max(waiting, default=0))
        gauge("blyan_net_gossip_peers").set(len(contacts))
        gauge("blyan_net_gossip_graylisted").set(
            sum(self._mesh.score(peer) < GRAYLIST for peer in contacts)
        )
        for name, links in self._mesh.mesh.items():
            gauge("blyan_net_gossip_mesh", topic=self._topics[name]).set(len(links))
