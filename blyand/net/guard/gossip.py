"""Containment of what a gossip message can do to py-libp2p 0.8.1, without a fork.

Mended here: exceptions that leave pubsub (each ended the host); messages judged or
delivered twice; topics, ids and addresses of a peer's choice that were stored or
dialled; reads of a byte, queues of copies, a thread for the ids that were seen.
`except Exception` stands here only around libp2p's code. docs/protocols/gossip.md
"""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.abc import IHost, INetStream
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded, ProtocolError
from blyand.net.guard.host import reset
from blyand.net.guard.intake import RPC_BYTES, Intake, Intakes, RpcReader
from blyand.net.guard.yamux import WRITE_STALL_S
from blyand.net.identity import embedded_key
from blyand.net.mesh import Mesh
from blyand.net.outbox import Outbox, publish_field, varint
from blyand.net.recall import Seen
from blyand.rules.net.misbehaviour import Blame

log = logging.getLogger(__name__)

# (forwarding peer, topic, message) -> True: forward it; False: the peer should have
# known better; None: drop it
Judge = Callable[[str, str, bytes], Awaitable[bool | None]]
Dropped = Callable[[str, str, str], None]  # (peer, topic or "", reason)

MESSAGES_PER_RPC = 1024
SUBSCRIPTIONS_PER_RPC = 64
ENVELOPE_BYTES = 256  # author, sequence, topic and signature of a message
SEQUENCE_BYTES = 8
JUDGE_DEADLINE_S = 30.0
GATHER_S = 0.005  # after a short RPC: what comes meanwhile leaves in one
GATHER_BYTES = 16 * 1024
WRITABLE_S = 5.0  # until a peer that writes to us can be written to
SIGNING_PREFIX = b"libp2p-pubsub:"


class GuardedPubsub(Pubsub):  # type: ignore[misc]
    """Pubsub with our three-valued judgement and without fatal messages.

    A message is judged once however many copies arrive, counts as seen after any
    verdict, and is forwarded only if it is well signed and the judge says so.
    """

    seen_messages: Any

    def __init__(
        self,
        host: IHost,
        router: Mesh,
        limits: dict[str, int],  # topic -> the most bytes of a message
        judge: Judge,
        blame: Blame,
        count: Callable[[int, int], None],  # bytes up, bytes down
        dropped: Dropped,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            allowed_topics=frozenset(limits),
            max_subscriptions_per_rpc=SUBSCRIPTIONS_PER_RPC,
            max_subscriptions_per_peer=len(limits),
            max_inbound_rpc_size=RPC_BYTES,
        )
        self.seen_messages.stop()  # its thread
        self.seen_messages = Seen()
        self.counter = time.time_ns()  # sequence numbers never repeat over a restart
        self._limits, self._judge = limits, judge
        self._blame, self._count, self._dropped = blame, count, dropped
        self._judging: dict[bytes, set[ID]] = {}  # id -> who has it
        self._intakes = Intakes()
        self._reading: dict[ID, INetStream] = {}
        self.is_ignored: Callable[[str], bool] = lambda peer: False
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.router.run)
                self.manager.run_daemon_task(self.handle_peer_queue)
                self.manager.run_daemon_task(self.handle_dead_peer_queue)
                await self.manager.wait_finished()
                self._nursery.cancel_scope.cancel()
        finally:
            self.peer_topics.clear()

    def knows(self, identity: bytes) -> bool:
        """True of a message that was judged or is being judged."""
        return identity in self._judging or self.seen_messages.has(identity)

    # Sending

    async def publish(self, topic_id: str | list[str], data: bytes) -> None:
        assert isinstance(topic_id, str), "a message has one topic"
        message = rpc_pb2.Message(
            data=data, topicIDs=[topic_id], from_id=self._own, seqno=self._next_seqno()
        )
        payload = SIGNING_PREFIX + message.SerializeToString()
        message.signature = self.sign_key.sign(payload)
        identity = self.get_message_id(message)
        self.seen_messages.add(identity)
        field = publish_field(message.SerializeToString())
        await self.router.forward(topic_id, identity, field, ())
        await trio.lowlevel.checkpoint()

    async def handle_sending_messages(
        self, peer_id: ID, stream: INetStream, _stock: Any
    ) -> None:
        queue = self.peer_queues.get(peer_id)
        if not isinstance(queue, Outbox):
            return  # it is gone already
        while (body := await queue.pop()) is not None:
            packet = varint(len(body)) + body
            with trio.move_on_after(WRITE_STALL_S) as scope:
                try:
                    await stream.write(packet)
                except Exception as error:
                    log.debug("gossip to %s: %r", peer_id, error)
                    break
            if scope.cancelled_caught:
                self._dropped(str(peer_id), "", "stalled")
                break
            self._count(len(packet), 0)
            if len(packet) < GATHER_BYTES:
                await trio.sleep(GATHER_S)
        else:
            return
        await reset(stream)
        if self.peers.get(peer_id) is stream:
            self._handle_dead_peer(peer_id)

    # Receiving

    async def continuously_read_stream(self, stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        before, self._reading[peer] = self._reading.get(peer), stream
        if before is not None:  # one stream of a peer is read: its newest
            await reset(before)
        try:
            with trio.move_on_after(WRITABLE_S):
                await self.router.wait_contact(peer)
            intake, reader = self._intakes.of(peer.to_bytes()), RpcReader(stream)
            while (body := await reader.next()) is not None:
                await self._take(peer, intake, body)
        except ProtocolError as error:
            self._blame(str(peer), error)
            await reset(stream)
        except Exception as error:
            log.debug("gossip stream of %s: %r", peer, error)
            await reset(stream)
        finally:
            if self._reading.get(peer) is stream:
                del self._reading[peer]

    async def _take(self, peer: ID, intake: Intake, body: bytes) -> None:
        rpc = rpc_pb2.RPC()
        try:
            rpc.ParseFromString(body)
        except ProtobufError as error:
            raise DecodeError("a gossip RPC is no protobuf") from error
        if len(rpc.publish) > MESSAGES_PER_RPC:
            raise LimitExceeded(f"{len(rpc.publish)} messages in a gossip RPC")
        now = trio.current_time()
        for announced in islice(rpc.subscriptions, SUBSCRIPTIONS_PER_RPC):
            if not intake.controls.take(1, now):
                self._dropped(str(peer), "", "control")
                break
            self.handle_subscription(peer, announced)
        if self.router.is_graylisted(peer):
            self._dropped(str(peer), "", "graylisted")
            return
        if rpc.HasField("control"):
            if intake.controls.take(_items(rpc.control), now):
                await self.router.handle_rpc(rpc, peer)
            else:
                self._dropped(str(peer), "", "control")
        for message in rpc.publish:
            await self._arrive(peer, intake, message)

    async def _arrive(self, peer: ID, intake: Intake, message: Any) -> None:
        topic = message.topicIDs[0] if len(message.topicIDs) == 1 else ""
        if topic not in self.topic_ids:
            self._dropped(str(peer), "", "topic")
            return
        size = message.ByteSize()
        identity = self.get_message_id(message)
        self._count(0, size)
        if self.is_ignored(str(peer)):
            self._dropped(str(peer), topic, "ignored")
            return  # not seen: others' copies of it count
        if self.router.is_graylisted(peer):  # by what stood before it in the RPC
            self._dropped(str(peer), topic, "graylisted")
            return
        self.router.told(peer, topic, identity)
        if not intake.allows(topic, size, trio.current_time()):
            self._dropped(str(peer), topic, "rate")
            return
        if self._is_copy(peer, identity):
            return
        if message.from_id == self._own:
            return
        if not await self._intakes.sit(intake):
            self._dropped(str(peer), topic, "busy")
        elif self._is_copy(peer, identity) or self._nursery is None:
            self._intakes.rise(intake)
        else:
            self._judging[identity] = {peer}
            self._nursery.start_soon(
                self._settle, peer, intake, topic, identity, message
            )
            # One start in each turn of the loop: a forwarder's order is kept, since
            # a block judged before its parent is an orphan for a while.
            await trio.lowlevel.checkpoint()

    def _is_copy(self, peer: ID, identity: bytes) -> bool:
        if identity in self._judging:
            self._judging[identity].add(peer)
            return True
        return bool(self.seen_messages.has(identity))

    async def _settle(
        self, peer: ID, intake: Intake, topic: str, identity: bytes, message: Any
    ) -> None:
        """Judge a message, once; forward it if it is good."""
        try:
            size = message.ByteSize()
            check(message, size, self._limits[topic])
            self.router.verified(peer, topic, identity, size)
            with trio.move_on_after(JUDGE_DEADLINE_S) as scope:
                verdict = await self._judge(str(peer), topic, message.data)
            if scope.cancelled_caught:
                self._dropped(str(peer), topic, "slow")
                return
            self.seen_messages.add(identity)
            if verdict:
                self.router.accepted(peer, topic, size)
                having = self._judging[identity]
                having.add(ID(message.from_id))
                field = publish_field(message.SerializeToString())
                await self.router.forward(topic, identity, field, having)
            elif verdict is False:
                self.router.punish(peer)
        except ProtocolError as error:  # anybody may have made it: not marked as seen
            self._blame(str(peer), error)
            self.router.punish(peer)
        except Exception as error:
            log.debug("gossip from %s: %r", peer, error)
        finally:
            del self._judging[identity]
            self._intakes.rise(intake)

    @functools.cached_property
    def _own(self) -> bytes:
        return bytes(self.my_id.to_bytes())


def check(message: Any, size: int, limit: int) -> None:
    """Raise ProtocolError unless its author signed the message and it is small enough."""
    if len(message.data) > limit or size > len(message.data) + ENVELOPE_BYTES:
        raise LimitExceeded(f"a gossip message of {size} bytes")
    if len(message.seqno) != SEQUENCE_BYTES:
        raise DecodeError("a gossip message without a sequence number")
    bare = rpc_pb2.Message(
        from_id=message.from_id,
        data=message.data,
        seqno=message.seqno,
        topicIDs=message.topicIDs,
    )
    try:
        key = _key_of(message.from_id)
        good = key.verify(SIGNING_PREFIX + bare.SerializeToString(), message.signature)
    except Exception as error:
        raise BadSignature("a gossip message with a broken signature") from error
    if not good:
        raise BadSignature("a gossip message that its author did not sign")


@functools.lru_cache(maxsize=1024)
def _key_of(author: bytes) -> Any:
    return Secp256k1PublicKey.from_bytes(embedded_key(author))


def _items(control: Any) -> int:
    """Return how many control messages there are."""
    return sum(
        len(kind)
        for kind in (
            control.ihave,
            control.iwant,
            control.graft,
            control.prune,
            control.idontwant,
        )
    )


_records: weakref.WeakKeyDictionary[IHost, bytes] = weakref.WeakKeyDictionary()
_issue_record = pubsub.env_to_send_in_RPC


def _own_record(host: IHost) -> tuple[bytes, bool]:
    # Stock code rebuilds and compares our addresses for every announcement.
    if host not in _records:
        _records[host] = _issue_record(host)[0]
    return _records[host], False


def mend_gossip() -> None:
    """Put the guarded function in stock's place; libp2p names it, not its caller."""
    pubsub.env_to_send_in_RPC = _own_record
