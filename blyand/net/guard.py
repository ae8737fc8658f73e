"""Containment of what a remote peer can do to py-libp2p 0.8.1, without a fork.

With guard_yamux the only file that touches private names of libp2p; `check_names`
fails at start when one of them is gone, and setup.cfg pins the version. Mended here:
exceptions that leave a stream handler, pubsub, the router or its heartbeat (each ended
the host); inbound slots that were never given back (no peer could connect after 250
connections); topics, ids and addresses of a peer's choice that were stored or dialled.
`except Exception` stands here only around libp2p's own code. docs/protocols/streams.md
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
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.abc import IHost, INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator

from blyan_proto.errors import BadSignature, DecodeError, LimitExceeded, ProtocolError
from blyand.net.guard_yamux import WRITE_STALL_S, YAMUX_PRIVATE, mend_yamux

log = logging.getLogger(__name__)

Blame = Callable[[str, ProtocolError], None]
# (forwarding peer, topic, message) -> True: forward it
Judge = Callable[[str, str, bytes], Awaitable[bool]]

STREAMS_PER_PEER = 256  # inbound, of any protocol
HANDSHAKES_PER_ADDRESS = 32  # inbound connections that did not authenticate yet
RPC_QUEUE = 1024  # gossip messages waiting for one peer; beyond: dropped
JUDGED_AT_ONCE = 1024  # gossip messages of one forwarder; beyond: dropped
IDS_PER_CONTROL = 64
IDONTWANT_BYTES = 4096  # below, a second copy is cheaper than telling peers so

_PRIVATE: tuple[tuple[Any, str], ...] = (
    (BasicHost, "_swarm_stream_handler"),
    (Swarm, "_do_handle_inbound_connection"),
    (Swarm, "_build_remote_multiaddr"),
    (Pubsub, "_replay_recent_messages"),
    (Pubsub, "_handle_dead_peer"),
    (GossipSub, "_check_equivocation"),
    (GossipSub, "_emit_idontwant_for_message"),
    (pubsub, "RpcQueue"),
    (pubsub, "env_to_send_in_RPC"),
    (gossipsub, "env_to_send_in_RPC"),
    (pubsub, "maybe_consume_signed_record"),
    (gossipsub, "maybe_consume_signed_record"),
)


def check_names(private: tuple[tuple[Any, str], ...] = _PRIVATE) -> None:
    """Fail at once if this libp2p is not the one that the guards were written for."""
    for owner, name in private + YAMUX_PRIVATE:
        if not hasattr(owner, name):
            raise ImportError(f"libp2p changed: it has no {owner.__name__}.{name}")


def guard_host(host: BasicHost, blame: Blame, inbound: int) -> None:
    """Contain stream handlers and inbound connections; dial only what we name.

    `inbound` bounds the inbound connections. Must be called before the host runs.
    """
    swarm: Any = host.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.set_resource_manager(None)  # its breakers refuse everybody for one's faults
    swarm.dial_peer = _never_dial
    swarm.auto_connector.maybe_connect = _dial_nobody
    swarm.auto_connector.run_background_task = _dial_nobody
    swarm._inbound_limiter.total_tokens = inbound
    swarm.set_stream_handler(_contained(host._swarm_stream_handler, blame))
    swarm._do_handle_inbound_connection = _slot_for_its_life(swarm)
    # Identify is answered, but what peers say of themselves is neither asked nor kept.
    host.remove_stream_handler(ID_PUSH)
    for notifee in list(swarm.notifees):
        if type(notifee).__name__ == "_IdentifyNotifee":
            swarm.remove_notifee(notifee)


async def _never_dial(peer_id: ID) -> Any:
    raise SwarmException(f"{peer_id} is not connected")


async def _dial_nobody(*_: Any) -> None: ...


def _contained(inner: Any, blame: Blame) -> Callable[[INetStream], Awaitable[None]]:
    open_streams: Counter[ID] = Counter()

    async def enter(stream: INetStream) -> None:
        peer = stream.muxed_conn.peer_id
        if open_streams[peer] >= STREAMS_PER_PEER:
            await _reset(stream)
            return
        open_streams[peer] += 1
        try:
            await inner(stream)
        except Exception as error:
            log.debug("stream of %s: %r", peer, error)
            if isinstance(error, (UnicodeDecodeError, ProtobufError)):
                blame(str(peer), DecodeError(f"libp2p: {type(error).__name__}"))
            await _reset(stream)
        finally:
            open_streams[peer] -= 1
            if not open_streams[peer]:
                del open_streams[peer]

    return enter


async def _reset(stream: INetStream) -> None:
    with trio.move_on_after(1, shield=True):
        try:
            await stream.reset()
        except Exception as error:
            log.debug("reset: %r", error)


def _slot_for_its_life(swarm: Any) -> Callable[..., Awaitable[None]]:
    shaking: Counter[str] = Counter()  # by address: nobody is authenticated yet

    async def handle(connection: Any, listener: Any, _failure: Any) -> None:
        raw = RawConnection(connection, False)
        host = (connection.get_remote_address() or ("", 0))[0]
        if shaking[host] < HANDSHAKES_PER_ADDRESS:
            shaking[host] += 1
            muxed = None
            try:
                muxed = await swarm.upgrade_inbound_raw_conn(raw, listener)
            except Exception as error:
                log.debug("inbound from %s: %r", host, error)
            finally:
                shaking[host] -= 1
                if not shaking[host]:
                    del shaking[host]
            if muxed is not None:
                await muxed.event_closed.wait()
        with trio.move_on_after(1, shield=True):
            try:
                await raw.close()
            except Exception as error:
                log.debug("closing: %r", error)

    return handle


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
        if msg_forwarder in self.blacklisted_peers or msg.from_id == self._own:
            return
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
            await _reset(stream)
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


check_names()
mend_yamux()
pubsub.RpcQueue = functools.partial(pubsub.RpcQueue, max_size=RPC_QUEUE)
for _module in (pubsub, gossipsub):
    _module.env_to_send_in_RPC = _own_record
    _module.maybe_consume_signed_record = _ignore_record
