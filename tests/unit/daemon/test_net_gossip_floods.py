"""What a hostile gossip peer can send: each flood against a real host, and its bound."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager

import trio
from libp2p.pubsub.pb import rpc_pb2

from blyan_proto.errors import LimitExceeded
from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK, CHECKPOINT
from blyand.metrics import Metrics
from blyand.net.gossip import Verdict
from blyand.net.guard import gossip as guard
from blyand.net.guard import intake
from blyand.net.host import open_host
from blyand.net.identity import key_pair_of, parse_peer_id, peer_id_of
from blyand.net.mesh import DEGREE_HIGH
from tests.unit.daemon.test_net_guard import raw_stream, settings, until_refused

TOPIC = BLOCK.on(b"\x07" * 32)


def packet(**fields) -> bytes:
    body = rpc_pb2.RPC(**fields).SerializeToString()
    size, prefix = len(body), b""
    while size > 127:
        prefix += bytes([size & 127 | 128])
        size >>= 7
    return prefix + bytes([size]) + body


def signed(number: int, sequence: int, data: bytes = b"x", **more):
    pair = key_pair_of(SigningKey(bytes([number]) * 32))
    author = identity_of(number).to_bytes()
    fields = {"data": data, "topicIDs": [TOPIC], "from_id": author} | more
    message = rpc_pb2.Message(**{"seqno": sequence.to_bytes(8, "big")} | fields)
    payload = b"libp2p-pubsub:" + message.SerializeToString()
    message.signature = pair.private_key.sign(payload)
    return message


def identity_of(number: int):
    return parse_peer_id(peer_id_of(SigningKey(bytes([number]) * 32).public))


async def relay(peer, raw):
    return Verdict.ACCEPT


@asynccontextmanager
async def attacked(check=None, **more):
    """A listening host, an attacker, and a raw gossip stream between them."""
    heard = []

    async def accept(peer, raw):
        heard.append(raw)
        return Verdict.ACCEPT

    with trio.fail_after(20):
        async with (
            open_host(settings(1, **more)) as host,
            open_host(settings(2)) as attacker,
            open_host(settings(3)) as honest,
        ):
            host.heard = heard
            await host.gossip.listen(BLOCK, check or accept)
            await honest.gossip.listen(BLOCK, relay)
            await honest.connect(host.addresses[0])
            peer = await attacker.connect(host.addresses[0])
            while not host.gossip.mesh(BLOCK) or len(host.gossip._mesh.contacts) < 2:
                await trio.sleep(0.005)
            # From here on the attacker speaks for itself: its own gossip stays away.
            attacker.gossip._pubsub.is_peer_blacklisted = lambda peer: True
            stream = await raw_stream(attacker, peer, "/meshsub/1.2.0")
            stream.open_another = lambda: raw_stream(attacker, peer, "/meshsub/1.2.0")
            yield host, stream, attacker.peer_id
            # Whatever it was: the honest peer is heard as before.
            if check is None:
                heard.clear()
                await honest.gossip.publish(BLOCK, b"still here")
                while b"still here" not in heard:
                    await trio.sleep(0.005)
                assert host.gossip.score(honest.peer_id) >= 0


async def until(condition):
    while not condition():
        await trio.sleep(0.005)


def test_more_than_anybody_relays_is_dropped_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(intake, "MESSAGES_AT_ONCE", 50)
    monkeypatch.setattr(intake, "MESSAGES_A_SECOND", 1)
    metrics = Metrics()
    dropped = 'blyan_net_gossip_drops{reason="rate",topic="block"}'

    async def main():
        async with attacked(metrics=metrics) as (host, stream, attacker):
            flood = [signed(2, number) for number in range(300)]
            await stream.write(packet(publish=flood))
            await until(lambda: metrics.snapshot().get(dropped, 0) >= 249)
            assert len(host.heard) <= 51
            assert host.gossip.score(attacker) >= 0, "a busy relay is no criminal"
            for number in range(300):  # our own pass no such limit
                await host.gossip.publish(BLOCK, b"own")
            assert metrics.snapshot()[dropped] <= 250

    with caplog.at_level(logging.WARNING, "blyand.net.gossip"):
        trio.run(main)
    said = [r for r in caplog.records if str(identity_of(2)) in r.getMessage()]
    assert len(said) == 1


def test_bytes_are_limited_as_well(monkeypatch):
    monkeypatch.setattr(intake, "BYTES_AT_ONCE", 200_000)
    monkeypatch.setattr(intake, "BYTES_A_SECOND", 1)

    async def main():
        async with attacked() as (host, stream, attacker):
            for number in range(8):
                message = signed(2, number, data=bytes([number]) * 60_000)
                await stream.write(packet(publish=[message]))
            await until(lambda: len(host.heard) == 3)
            await stream.write(packet(publish=[signed(2, 99, data=b"small")]))
            await until(lambda: b"small" in host.heard)
            assert len(host.heard) == 4

    trio.run(main)


def test_subscriptions_fill_no_table():
    """py-libp2p#1349: topics of a peer's choice, kept for ever."""

    async def main():
        async with attacked() as (host, stream, attacker):
            pubsub = host.gossip._pubsub
            for turn in range(40):
                names = [f"topic {turn} {number}" for number in range(500)]
                options = [
                    rpc_pb2.RPC.SubOpts(subscribe=True, topicid=name) for name in names
                ]
                await stream.write(packet(subscriptions=options))
            for number in range(300):
                option = rpc_pb2.RPC.SubOpts(subscribe=number % 2 == 0, topicid=TOPIC)
                await stream.write(packet(subscriptions=[option]))
            await stream.write(packet(publish=[signed(2, 1, data=b"end")]))
            await until(lambda: b"end" in host.heard)
            assert set(pubsub.peer_topics) <= {TOPIC}
            assert sum(pubsub._peer_subscription_count.values()) <= 2
            assert not pubsub._subscription_events and not pubsub._peer_added_events
            assert len(pubsub._pending_announce_retries) <= 2

    trio.run(main)


def test_control_floods_are_cut():
    async def main():
        async with attacked() as (host, stream, attacker):
            mesh = host.gossip._mesh
            for turn in range(30):
                control = rpc_pb2.ControlMessage()
                ids = [bytes([turn]) * 8 + n.to_bytes(4, "big") for n in range(2000)]
                control.ihave.add(topicID=TOPIC, messageIDs=ids)
                control.iwant.add(messageIDs=ids)
                control.idontwant.add(messageIDs=ids)
                for number in range(100):
                    control.graft.add(topicID=f"unknown {number}")
                    control.prune.add(topicID=f"unknown {number}", backoff=1 << 50)
                await stream.write(packet(control=control))
            await stream.write(packet(publish=[signed(2, 1, data=b"end")]))
            await until(lambda: b"end" in host.heard)
            assert set(mesh.mesh) == {TOPIC}
            assert len(mesh.mesh[TOPIC]) <= DEGREE_HIGH
            assert not [key for key in mesh._backoff if key[0] != TOPIC]
            assert len(mesh.offers._wanted) <= 8192
            queue = mesh.contacts[parse_peer_id(attacker)].outbox
            assert sum(map(len, queue._unwanted)) <= 2048

    trio.run(main)


def test_too_many_messages_in_one_rpc_end_the_stream():
    blamed = []

    async def main():
        async with attacked(blame=lambda p, e: blamed.append(type(e))) as (
            h,
            stream,
            _,
        ):
            empty = [rpc_pb2.Message()] * (guard.MESSAGES_PER_RPC + 1)
            await stream.write(packet(publish=empty))
            await until(lambda: blamed)

    trio.run(main)
    assert blamed == [LimitExceeded]


def test_ids_and_envelopes_have_a_size():
    blamed = []
    junk = [
        signed(2, 0, seqno=bytes(60_000)),
        signed(2, 0, seqno=b""),
        signed(2, 1, key=bytes(30_000)),
        signed(2, 2, data=bytes(BLOCK.max_bytes + 1)),
    ]

    async def main():
        async with attacked(blame=lambda p, e: blamed.append(type(e))) as (
            host,
            stream,
            attacker,
        ):
            for number, message in enumerate(junk, 1):
                await stream.write(packet(publish=[message]))
                await until(lambda: len(blamed) == number)
                host.gossip.forgive(attacker)  # else the fourth would not be read
            assert not host.heard and len(host.gossip._pubsub.seen_messages) == 0

    trio.run(main)


def test_one_stream_of_a_peer_is_read():
    """256 streams, each with a half RPC, are 256 MiB; the newest one counts."""

    async def main():
        async with attacked() as (host, first, attacker):
            before = first
            for number in range(20):
                stream = await first.open_another()
                await stream.write(b"\xff\xff\x3f" + bytes(1000))
                await until_refused(before)
                before = stream
            stream = await first.open_another()
            await stream.write(packet(publish=[signed(2, 1, data=b"newest")]))
            await until(lambda: b"newest" in host.heard)

    trio.run(main)


def test_a_check_that_hangs_holds_its_forwarder_only(monkeypatch):
    """One peer's messages that never get judged do not stop another's."""
    monkeypatch.setattr(intake, "PATIENCE_S", 0.05)
    heard = []

    async def check(peer, raw):
        if raw.startswith(b"hang"):
            await trio.sleep_forever()
        heard.append(raw)
        return Verdict.ACCEPT

    async def main():
        metrics = Metrics()
        async with attacked(check, metrics=metrics) as (host, stream, attacker):
            count = intake.JUDGED_AT_ONCE + 20
            flood = [signed(2, n, data=b"hang%d" % n) for n in range(count)]
            await stream.write(packet(publish=flood))
            busy = 'blyan_net_gossip_drops{reason="busy",topic="block"}'
            await until(lambda: metrics.snapshot().get(busy, 0) >= 20)
            assert len(host.gossip._pubsub._judging) == intake.JUDGED_AT_ONCE
            async with open_host(settings(4)) as other:
                await other.connect(host.addresses[0])
                await until(lambda: other.gossip.peers(BLOCK))
                await other.gossip.publish(BLOCK, b"quick")
                await until(lambda: b"quick" in heard)

    trio.run(main)


def test_intakes_of_those_who_left_are_bounded(monkeypatch):
    monkeypatch.setattr(intake, "MAX_INTAKES", 8)
    intakes = intake.Intakes(lambda: 0.0)
    first = intakes.of(b"first")
    for number in range(50):
        intakes.of(b"first")
        intakes.of(bytes([number]))
    assert len(intakes) == 8 and intakes.of(b"first") is first
    assert CHECKPOINT.max_bytes + guard.ENVELOPE_BYTES < intake.RPC_BYTES
