"""Containment of what a gossip message can do to py-libp2p 0.8.1, without a fork.

Mended here: exceptions that leave pubsub, the router or its heartbeat (each ended the
host); messages judged or delivered twice; topics, ids and addresses of a peer's choice
that were stored or dialled. `except Exception` stands here only around libp2p's code.
docs/protocols/streams.md
"""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio
from libp2p.abc import IHost, INetStream
from libp2p.peer.id import ID
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator

from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded, ProtocolError
from blyand.net.guard.host import Blame, reset
from blyand.net.guard.yamux import WRITE_STALL_S

log = logging.getLogger(__name__)

# (forwarding peer, topic, message) -> True: forward it
Judge = Callable[[str, str, bytes], Awaitable[bool]]

RPC_QUEUE = 1024  # gossip messages waiting for one peer; beyond: dropped
JUDGED_AT_ONCE = 1024  # gossip messages of one forwarder; beyond: dropped
IDS_PER_CONTROL = 64
IDONTWANT_BYTES = 4096  # below, a second copy is cheaper than telling peers so


class GuardedPubsub(Pubsub):  # type: ignore[misc]
    """Pubsub with our three-valued judgement and without fatal messages.

    A message is judged once however many copies arrive, counts as seen after any
    verdict, and is forwarded only if it is well signed and the judge says so.
    """

    def __init__(
        self,
        host: IHost,
        router: GossipSub,
        limits: dict[str, int],  # topic -> the most bytes of a message
        judge: Judge,
        blame: Blame,
        count: Callable[[int, int], None],  # bytes up, bytes down
    ) -> None:
        super().__init__(
            host, router, strict_signing=True, allowed_topics=frozenset(limits)
        )
        self.counter = time.time_ns()  # sequence numbers never repeat over a restart
        self._limits, self._judge = limits, judge
        self._blame, self._count = blame, count
        self.is_ignored: Callable[[str], bool] = lambda peer: False
        self._judging: set[bytes] = set()
        self._load: Counter[ID] = Counter()
        self._writing: weakref.WeakKeyDictionary[INetStream, trio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if msg_forwarder == self.my_id:
            self.seen_messages.add(self.get_message_id(msg))
            await self.router.publish(msg_forwarder, msg)
            return
        self._count(0, msg.ByteSize())
        identity = self.get_message_id(msg)
        if identity in self._judging or self.seen_messages.has(identity):
            return
        if msg.from_id == self._own or self.is_ignored(str(msg_forwarder)):
            return  # not seen: others' copies of it count
        if self._load[msg_forwarder] >= JUDGED_AT_ONCE:
            log.debug("more gossip from %s than can be judged", msg_forwarder)
            return
        self._load[msg_forwarder] += 1
        self._judging.add(identity)
        try:
            self._check(msg)
            good = await self._judge(str(msg_forwarder), msg.topicIDs[0], msg.data)
            self.seen_messages.add(identity)
            if good:
                await self.router.publish(msg_forwarder, msg)
        except ProtocolError as error:  # anybody may have made it: not marked as seen
            self._blame(str(msg_forwarder), error)
        except Exception as error:
            log.debug("gossip from %s: %r", msg_forwarder, error)
        finally:
            self._judging.discard(identity)
            self._load[msg_forwarder] -= 1
            if not self._load[msg_forwarder]:
                del self._load[msg_forwarder]

    @functools.cached_property
    def _own(self) -> bytes:
        return bytes(self.my_id.to_bytes())

    def _check(self, msg: rpc_pb2.Message) -> None:
        """Raise ProtocolError unless the message may be judged at all."""
        if len(msg.topicIDs) != 1 or msg.topicIDs[0] not in self._limits:
            raise DecodeError("a gossip message has one topic, one of ours")
        if len(msg.data) > self._limits[msg.topicIDs[0]]:
            raise LimitExceeded(f"{len(msg.data)} bytes on {msg.topicIDs[0]}")
        try:
            good = signature_validator(msg)
        except Exception as error:
            raise BadSignature("a gossip message with a broken key") from error
        if not good:
            raise BadSignature("a gossip message that its author did not sign")

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        # Stock pubsub writes from several tasks; long messages would interleave.
        lock = self._writing.setdefault(stream, trio.Lock())
        with trio.move_on_after(WRITE_STALL_S) as scope:
            async with lock:
                sent = await super().write_msg(stream, rpc_msg)
        if scope.cancelled_caught:
            await reset(stream)
            self._handle_dead_peer(stream.muxed_conn.peer_id)
            return False
        self._count(rpc_msg.ByteSize(), 0)
        return bool(sent)

    async def _replay_recent_messages(self, peer_id: ID, topic: str) -> None:
        try:
            await super()._replay_recent_messages(peer_id, topic)
        except Exception as error:
            log.debug("replay to %s: %r", peer_id, error)


class GuardedGossipSub(GossipSub):  # type: ignore[misc]
    """The router, deaf to topics we do not have and to peers' dialling advice."""

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception as error:
                log.warning("the gossip heartbeat failed: %r", error)
                await trio.sleep(self.heartbeat_interval)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        rpc.control.CopyFrom(self._ours(rpc.control))
        await self._contain(super().handle_rpc(rpc, sender_peer_id))

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        await self._contain(super().on_peer_subscribed(peer_id, topic))

    async def flush_pending_messages(self, peer_id: ID) -> None:
        await self._contain(super().flush_pending_messages(peer_id))

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        await super().publish(msg_forwarder, pubsub_msg)
        self.recent_message_deliveries.clear()  # grows for ever otherwise

    async def _emit_idontwant_for_message(
        self, msg_id: bytes, topic_ids: Iterable[str]
    ) -> None:
        message = self.mcache.get(msg_id)
        if message is not None and len(message.data) >= IDONTWANT_BYTES:
            await super()._emit_idontwant_for_message(msg_id, topic_ids)

    async def _contain(self, call: Awaitable[None]) -> None:
        try:
            await call
        except Exception as error:
            log.debug("gossip router: %r", error)

    def _check_equivocation(self, msg: rpc_pb2.Message) -> bool:
        return True  # keeps whole messages; the set of seen ids answers the same

    def _ours(self, control: rpc_pb2.ControlMessage) -> rpc_pb2.ControlMessage:
        """Return the part of a control message that concerns our topics, bounded."""
        kept = rpc_pb2.ControlMessage()
        for have in control.ihave[:IDS_PER_CONTROL]:
            if have.topicID in self.mesh:
                kept.ihave.add(topicID=have.topicID, messageIDs=_some(have.messageIDs))
        for graft in control.graft[:IDS_PER_CONTROL]:
            if graft.topicID in self.mesh:
                kept.graft.add(topicID=graft.topicID)
        for prune in control.prune[:IDS_PER_CONTROL]:
            if prune.topicID in self.mesh:
                backoff = min(prune.backoff, 3600)
                kept.prune.add(topicID=prune.topicID, backoff=backoff)
        if wanted := _some(id for want in control.iwant for id in want.messageIDs):
            kept.iwant.add(messageIDs=wanted)
        if unwanted := _some(id for no in control.idontwant for id in no.messageIDs):
            kept.idontwant.add(messageIDs=unwanted)
        return kept


def _some(ids: Any) -> list[Any]:
    """Return the first distinct message ids, each once, of a sane length."""
    some: dict[Any, None] = {}
    for identity in ids:
        if len(identity) <= 256:
            some[identity] = None
        if len(some) == IDS_PER_CONTROL:
            break
    return list(some)


_records: weakref.WeakKeyDictionary[IHost, bytes] = weakref.WeakKeyDictionary()
_issue_record = pubsub.env_to_send_in_RPC


def _own_record(host: IHost) -> tuple[bytes, bool]:
    # Stock code rebuilds and compares our addresses for every message it sends.
    if host not in _records:
        _records[host] = _issue_record(host)[0]
    return _records[host], False


def _ignore_record(_msg: Any, _host: IHost, _peer_id: ID) -> bool:
    return True  # addresses come from hello, filtered (DEC-C9)


def mend_gossip() -> None:
    """Put the guarded functions in stock's place; libp2p names them, not its caller."""
    pubsub.RpcQueue = functools.partial(pubsub.RpcQueue, max_size=RPC_QUEUE)
    for module in (pubsub, gossipsub):
        module.env_to_send_in_RPC = _own_record
        module.maybe_consume_signed_record = _ignore_record
