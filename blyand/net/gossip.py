"""Broadcast over gossipsub: bounded topics, and a verdict of three values on arrival.

Strategy. A check is cheap and never raises into the transport: what it accepts is
forwarded, what it ignores is dropped without a word, what it rejects costs the peer
that forwarded it. Only the guard's pubsub calls `judge`; one of the four boundaries.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from libp2p.abc import IHost
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12
from libp2p.tools.anyio_service import background_trio_service

from blyan_proto.errors import LimitExceeded, ProtocolError, UnexpectedMessage
from blyan_proto.topics import TOPICS, Topic
from blyand.errors import LocalFault
from blyand.net.guard.gossip import GuardedGossipSub, GuardedPubsub
from blyand.net.stream import Blame, Traffic
from blyand.rules.verdict import Ignore, Reject

HEARTBEAT_S = 1  # the router counts in whole seconds
GOSSIP = "gossip"  # the name under which traffic is counted


class Verdict(enum.Enum):
    """What becomes of a gossip message."""

    ACCEPT = "accept"  # forward it
    IGNORE = "ignore"  # drop it; nobody's fault
    REJECT = "reject"  # drop it; the forwarder should have known


Check = Callable[[str, bytes], Awaitable[Verdict]]
# (what, id, bytes, error) of an item on which our own code fell over (DEC-C2)
Poison = Callable[[str, bytes, bytes, Exception], None]


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
    ) -> None:
        self._blame, self._poison, self._fail = blame, poison, fail
        self._names = {topic: topic.on(network) for topic in TOPICS}
        self._checks: dict[str, Check] = {}
        self._router = GuardedGossipSub(
            [PROTOCOL_ID_V12, PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=HEARTBEAT_S,
            spam_protection_enabled=False,  # silently drops our own messages as well
            eclipse_protection_enabled=False,  # by address: all of a devnet is one
            adaptive_gossip_enabled=False,  # turns one second into thirty
            max_pending_messages_per_peer=16,
        )
        self._pubsub = GuardedPubsub(
            host,
            self._router,
            limits={name: topic.max_bytes for topic, name in self._names.items()},
            judge=self._judge,
            blame=blame,
            count=lambda up, down: traffic.add(GOSSIP, up, down),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Gossip while the block runs; the host must be running already."""
        try:
            async with (
                background_trio_service(self._router),
                background_trio_service(self._pubsub),
            ):
                await self._pubsub.wait_until_ready()
                yield
        finally:
            self._pubsub.seen_messages.stop()  # ends its thread

    async def publish(self, topic: Topic, raw: bytes) -> None:
        """Broadcast a message. It does not come back to our own check.

        Raises LimitExceeded above the topic's bound (stock gossipsub drops silently).
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
        """Return the peers to which every message on `topic` goes from here."""
        links: Any = self._router.mesh.get(self._names[topic], ())
        return tuple(str(peer) for peer in links)

    def ignore(self, is_ignored: Callable[[str], bool]) -> None:
        """Drop, unread and not as seen, what comes from whom `is_ignored(peer)` names."""
        self._pubsub.is_ignored = is_ignored

    async def _judge(self, peer: str, name: str, raw: bytes) -> bool:
        check = self._checks.get(name)
        if check is None:
            return False
        try:
            verdict = await check(peer, raw)
        except Ignore:
            verdict = Verdict.IGNORE
        except ProtocolError as error:
            self._blame(peer, error)
            return False
        except Reject as error:
            self._blame(peer, UnexpectedMessage(f"on {name}: {error}"))
            return False
        except LocalFault as error:
            self._fail(error)
            return False
        except Exception as error:
            identity = hashlib.blake2b(raw, digest_size=32).digest()
            self._poison("gossip message", identity, raw, error)
            return False
        if verdict is Verdict.REJECT:
            self._blame(peer, UnexpectedMessage(f"on {name}: rejected"))
        return verdict is Verdict.ACCEPT
