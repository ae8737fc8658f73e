"""Gossip that is broken, forged, forbidden or simply too much; and lies when asked."""

from __future__ import annotations

import os
from typing import Any

import trio
from libp2p.crypto.pb import crypto_pb2
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from blyan_proto.protocols import blobs, blocks, sync
from blyan_proto.topics import BLOCK, CHECKPOINT, Topic
from blyand.net.identity import parse_peer_id
from tests.functional.attacks.attacker import (
    DISCONNECTED,
    GONE,
    REFUSED,
    RESET,
    Attacker,
    behaviour,
    ended,
    let_go,
)

MESHSUB = "/meshsub/1.2.0"


def packed(message: rpc_pb2.RPC) -> bytes:
    body: bytes = message.SerializeToString()
    size, prefix = len(body), bytearray()
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes([size]) + body


def message(
    attacker: Attacker, data: bytes, topic: Topic = BLOCK, **changes: Any
) -> rpc_pb2.Message:
    """A gossip message that this attacker signed, but for `changes`."""
    fields: dict[str, Any] = {
        "data": data,
        "topicIDs": [topic.on(attacker.victim.genesis.id)],
        "from_id": parse_peer_id(attacker.peer_id).to_bytes(),
        "seqno": os.urandom(8),
    }
    made = rpc_pb2.Message(**(fields | changes))
    payload = PUBSUB_SIGNING_PREFIX.encode() + made.SerializeToString()
    made.signature = attacker.pair.private_key.sign(payload)
    return made


async def gossips(attacker: Attacker, *rpcs: rpc_pb2.RPC) -> str:
    """Send them all; then see whether the victim still wants us."""
    return await gossips_raw(attacker, *map(packed, rpcs))


async def gossips_raw(attacker: Attacker, *raws: bytes) -> str:
    async with attacker.connected() as muxed:
        try:
            stream = await attacker.stream(MESHSUB)
            for raw in raws:
                with trio.fail_after(10):
                    await stream.write(raw)
            await trio.sleep(0.5)
            await let_go(stream)
        except GONE:
            return DISCONNECTED if muxed.is_closed else RESET
        return DISCONNECTED if muxed.is_closed else REFUSED


@behaviour
async def gossip_that_is_no_protobuf(attacker: Attacker) -> str:
    async with attacker.connected():
        for _ in range(3):
            try:
                stream = await attacker.stream(MESHSUB)
                await stream.write(b"\x02\x0a\xff")
                await ended(stream)
            except GONE:
                return DISCONNECTED
    return RESET


@behaviour
async def gossip_of_two_gigabytes(attacker: Attacker) -> str:
    return await gossips_raw(attacker, b"\xff\xff\xff\xff\x07", bytes(1 << 20))


@behaviour
async def gossip_length_without_end(attacker: Attacker) -> str:
    return await gossips_raw(attacker, b"\xff" * 64)


@behaviour
async def unsigned_gossip(attacker: Attacker) -> str:
    made = [message(attacker, os.urandom(64)) for _ in range(16)]
    for one in made:
        one.signature = b""
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def gossip_signed_by_another(attacker: Attacker) -> str:
    other = Attacker(attacker.victim, attacker.address)
    sender = parse_peer_id(other.peer_id).to_bytes()
    made = [message(attacker, os.urandom(64), from_id=sender) for _ in range(16)]
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def gossip_with_junk_keys(attacker: Attacker) -> str:
    made = [
        message(attacker, b"x", from_id=b"\x12\x20" + os.urandom(32), key=key)
        for key in (b"\xff", b"\x08\x02\x12\x01\x00", os.urandom(80), b"\x08\x63") * 3
    ]
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def gossip_with_a_private_key(attacker: Attacker) -> str:
    """Hundreds of kilobytes whose primality a stock host tests."""
    raw = b"\x30\x83" + (200_000).to_bytes(3, "big") + bytes(200_000)
    key = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=raw).SerializeToString()
    sender = b"\x12\x20" + os.urandom(32)
    made = message(attacker, b"x", from_id=sender, key=key)
    return await gossips(attacker, rpc_pb2.RPC(publish=[made]))


@behaviour
async def gossip_above_the_bound(attacker: Attacker) -> str:
    made = message(attacker, bytes(200_000))
    return await gossips(attacker, *[rpc_pb2.RPC(publish=[made])] * 3)


@behaviour
async def gossip_on_a_topic_of_its_own(attacker: Attacker) -> str:
    topics = [f"/blyan/{os.urandom(8).hex()}" for _ in range(500)]
    subscriptions = [
        rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in topics
    ]
    made = [message(attacker, b"x", topicIDs=[topic]) for topic in topics[:20]]
    return await gossips(
        attacker,
        rpc_pb2.RPC(subscriptions=subscriptions[:250]),
        rpc_pb2.RPC(subscriptions=subscriptions[250:], publish=made),
    )


@behaviour
async def gossip_on_two_topics(attacker: Attacker) -> str:
    network = attacker.victim.genesis.id
    both = [BLOCK.on(network), CHECKPOINT.on(network)]
    made = [message(attacker, b"x", topicIDs=both) for _ in range(16)]
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def garbage_for_blocks(attacker: Attacker) -> str:
    made = [message(attacker, os.urandom(300)) for _ in range(20)]
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def garbage_for_checkpoints(attacker: Attacker) -> str:
    made = [message(attacker, os.urandom(300), CHECKPOINT) for _ in range(20)]
    return await gossips(attacker, rpc_pb2.RPC(publish=made))


@behaviour
async def flood_of_gossip(attacker: Attacker) -> str:
    made = [message(attacker, os.urandom(40)) for _ in range(600)]
    rpcs = [rpc_pb2.RPC(publish=made[at : at + 50]) for at in range(0, 600, 50)]
    return await gossips(attacker, *rpcs)


@behaviour
async def gossip_replayed(attacker: Attacker) -> str:
    made = message(attacker, os.urandom(40))
    return await gossips(attacker, *[rpc_pb2.RPC(publish=[made] * 50)] * 10)


@behaviour
async def grafts_and_prunes(attacker: Attacker) -> str:
    control = rpc_pb2.ControlMessage()
    ours = BLOCK.on(attacker.victim.genesis.id)
    for number in range(200):
        control.graft.add(topicID=f"nothing {number}")
        control.prune.add(topicID=ours, backoff=1 << 60)
        control.graft.add(topicID=ours)
    return await gossips(attacker, *[rpc_pb2.RPC(control=control)] * 10)


@behaviour
async def offers_and_wishes(attacker: Attacker) -> str:
    """Messages that there are not: offered, wanted and refused by the thousand."""
    control = rpc_pb2.ControlMessage()
    ids = [os.urandom(20) for _ in range(2000)]
    ours = BLOCK.on(attacker.victim.genesis.id)
    control.ihave.add(topicID=ours, messageIDs=ids)
    control.iwant.add(messageIDs=ids)
    control.idontwant.add(messageIDs=ids)
    return await gossips(attacker, *[rpc_pb2.RPC(control=control)] * 5)


async def asked_for(attacker: Attacker, protocol: str, answer: bytes) -> trio.Event:
    """Answer whatever the victim asks on a protocol with the same bytes."""
    asked = trio.Event()

    async def lie(stream: Any) -> None:
        asked.set()
        try:
            await stream.read(4096)
            await stream.write(answer)
            await stream.close_write()
            await stream.read(1)
        except GONE:
            pass

    attacker.host.set_stream_handler(protocol, lie)
    return asked


OK = b"\0\0\0\x01\0"


@behaviour
async def checkpoints_that_are_lies(attacker: Attacker) -> str:
    """Far ahead by its own word; asked for the way there, it sends garbage."""
    async with attacker.connected(hello=False) as muxed:
        garbage = OK + b"\0\0\0\x40" + os.urandom(64)
        asked = await asked_for(attacker, sync.PROTOCOL_ID, garbage)
        await attacker.greet(finalised=2**40, checkpoint=os.urandom(32))
        with trio.move_on_after(4):  # a lone validator asks nobody for checkpoints
            await asked.wait()
            await trio.sleep(0.3)
        return DISCONNECTED if muxed.is_closed else REFUSED


@behaviour
async def answers_that_never_come(attacker: Attacker) -> str:
    """Far ahead by its own word; asked for the way there, it says nothing."""
    async with attacker.connected(hello=False) as muxed:
        for protocol in (sync.PROTOCOL_ID, blocks.PROTOCOL_ID, blobs.PROTOCOL_ID):
            await asked_for(attacker, protocol, b"")
        await attacker.greet(finalised=2**41, checkpoint=os.urandom(32))
        await trio.sleep(2)
        return DISCONNECTED if muxed.is_closed else REFUSED


@behaviour
async def identity_pushed(attacker: Attacker) -> str:
    """Addresses by identify-push: nobody listens."""
    async with attacker.connected():
        try:
            await attacker.stream("/ipfs/id/push/1.0.0")
        except GONE:
            return REFUSED
    raise AssertionError("it takes identify-push")


@behaviour
async def pings_without_pause(attacker: Attacker) -> str:
    async with attacker.connected():
        stream = await attacker.stream("/ipfs/ping/1.0.0")
        answered = 0
        with trio.move_on_after(1.5):
            try:
                await stream.write(bytes(32 * 400))
                while True:
                    answered += len(await stream.read(4096)) // 32
            except GONE:
                return DISCONNECTED
    assert answered < 200, answered
    return "throttled"
