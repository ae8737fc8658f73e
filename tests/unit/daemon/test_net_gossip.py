"""Gossip among four hosts: everything arrives once, verdicts hold, nothing comes back."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from blyan_proto.errors import BadSignature, LimitExceeded
from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK, CHECKPOINT
from blyand.errors import StorageFault
from blyand.metrics import Metrics
from blyand.net.gossip import Verdict
from blyand.net.host import HostSettings, open_host
from blyand.net.identity import key_pair_of, parse_peer_id
from blyand.rules.net.score import GRAYLIST
from blyand.rules.verdict import Ignore, Reject


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32, **more)


@asynccontextmanager
async def line(count, checks, topic=BLOCK, each=lambda number: {}, **more):
    """Hosts in a row, each listening with its own check; ready to gossip."""
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(
                open_host(settings(number + 1, **more, **each(number)))
            )
            for number in range(count)
        ]
        for host, check in zip(hosts, checks):
            await host.gossip.listen(topic, check)
        for left, right in zip(hosts, hosts[1:]):
            await right.connect(left.addresses[0])
        for place, host in enumerate(hosts):
            degree = (place > 0) + (place < count - 1)
            while len(host.gossip.peers(topic)) < degree:
                await trio.sleep(0.005)
        yield hosts


def test_a_burst_arrives_everywhere_once():
    """1,000 messages of one node, own and relayed: each is judged once, none is lost."""
    count = 1000
    heard = [[] for _ in range(5)]
    metrics = [Metrics() for _ in range(5)]

    def checker(place):
        async def check(peer, raw):
            for _ in range(3):  # copies arrive while one is judged
                await trio.lowlevel.checkpoint()
            heard[place].append(raw)
            return Verdict.ACCEPT

        return check

    async def main():
        checks = [checker(place) for place in range(5)]
        async with line(5, checks, each=lambda n: {"metrics": metrics[n]}) as hosts:
            await hosts[4].connect(hosts[0].addresses[0])  # a ring: copies
            sent = [number.to_bytes(2, "big") * 50 for number in range(count)]
            with trio.fail_after(90):
                async with trio.open_nursery() as nursery:
                    for raw in sent:
                        nursery.start_soon(hosts[0].gossip.publish, BLOCK, raw)
                while any(len(at) < count for at in heard[1:]):
                    await trio.sleep(0.01)
            assert heard[0] == []
            assert all(sorted(at) == sorted(sent) for at in heard[1:])
            assert hosts[0].traffic()["gossip"][0] > count * 100
            for number, host in enumerate(hosts):
                assert all(host.gossip.score(peer) >= 0 for peer in peers_of(host))
                told = metrics[number].snapshot()
                assert not [key for key in told if "drops" in key], told
                accepted = [told[key] for key in told if "accept" in key]
                assert accepted == ([count] if number else [])

    trio.run(main)


def peers_of(host):
    return [info.peer_id for info in host.peers()]


def test_who_forwards_invalid_messages_is_graylisted_and_nobody_else():
    """A bad node between good ones: out of the mesh at once, then not heard at all."""
    heard, rejected = [[] for _ in range(4)], []

    def checker(place):
        async def check(peer, raw):
            if place and raw.startswith(b"bad"):
                rejected.append(peer)
                return Verdict.REJECT
            heard[place].append(raw)
            return Verdict.ACCEPT

        return check

    async def main():
        async with line(4, [checker(place) for place in range(4)]) as hosts:
            bad, good = hosts[0], hosts[1:]
            for host in good[1:]:
                await bad.connect(host.addresses[0])
            while any(bad.peer_id not in host.gossip.mesh(BLOCK) for host in good):
                await trio.sleep(0.005)
            await bad.gossip.publish(BLOCK, b"fine")
            for number in range(20):
                await bad.gossip.publish(BLOCK, b"bad" + bytes([number]))
            while any(host.gossip.score(bad.peer_id) > GRAYLIST for host in good):
                await trio.sleep(0.005)
            assert all(bad.peer_id not in host.gossip.mesh(BLOCK) for host in good)
            while any(host.gossip._pubsub._judging for host in good):
                await trio.sleep(0.005)
            assert set(rejected) == {bad.peer_id}
            assert len(rejected) <= 3 * 6, "what follows the third is hardly looked at"
            before = len(rejected)
            await bad.gossip.publish(BLOCK, b"not even this")
            for host in good:
                await host.gossip.publish(BLOCK, host.peer_id.encode())
            with trio.fail_after(5):
                while any(
                    other.peer_id.encode() not in heard[place]
                    for place, host in enumerate(good, 1)
                    for other in good
                    if other is not host
                ):
                    await trio.sleep(0.005)
            assert all(b"not even this" not in at for at in heard)
            assert len(rejected) == before
            for host in good:
                others = [other for other in good if other is not host]
                assert all(host.gossip.score(other.peer_id) >= 0 for other in others)

    trio.run(main)


def test_a_restart_repeats_no_sequence_number():
    heard = []

    async def check(peer, raw):
        heard.append(raw)
        return Verdict.ACCEPT

    async def main():
        async with open_host(settings(1)) as host:
            await host.gossip.listen(BLOCK, check)
            for life in range(3):
                async with open_host(settings(2)) as mortal:
                    await mortal.connect(host.addresses[0])
                    while not mortal.gossip.peers(BLOCK):
                        await trio.sleep(0.005)
                    for number in range(5):
                        await mortal.gossip.publish(BLOCK, bytes([life, number]))
                    while len(heard) < 5 * (life + 1):
                        await trio.sleep(0.005)
                await host.wait_gone(mortal.peer_id)

    with_deadline(main, 10)
    assert sorted(heard) == [bytes([a, b]) for a in range(3) for b in range(5)]


def test_a_stock_gossipsub_host_talks_with_us():
    """Wire compatibility, both ways, with py-libp2p's own router and pubsub."""
    heard = []

    async def check(peer, raw):
        heard.append(raw)
        return Verdict.ACCEPT

    async def main():
        pair = key_pair_of(SigningKey(b"\x09" * 32))
        noise = Noise(pair, noise_privkey=create_new_key_pair().private_key)
        stock = new_host(key_pair=pair, sec_opt={NOISE: noise})
        router = GossipSub(
            [PROTOCOL_ID_V12], 6, 4, 12, heartbeat_interval=1, do_px=False
        )
        stock_pubsub = Pubsub(stock, router, strict_signing=True)
        async with open_host(settings(1)) as host:
            await host.gossip.listen(BLOCK, check)
            async with (
                stock.run([]),
                background_trio_service(router),
                background_trio_service(stock_pubsub),
            ):
                await stock_pubsub.wait_until_ready()
                inbox = await stock_pubsub.subscribe(BLOCK.on(b"\x07" * 32))
                address, _, peer = host.addresses[0].rpartition("/p2p/")
                await stock.connect(PeerInfo(parse_peer_id(peer), [Multiaddr(address)]))
                while not (
                    host.gossip.mesh(BLOCK) and router.mesh.get(BLOCK.on(b"\x07" * 32))
                ):
                    await trio.sleep(0.01)
                await host.gossip.publish(BLOCK, b"from us")
                assert (await inbox.get()).data == b"from us"
                await stock_pubsub.publish(BLOCK.on(b"\x07" * 32), b"from stock")
                while not heard:
                    await trio.sleep(0.005)
                assert heard == [b"from stock"]
                await stock.close()

    with_deadline(main, 15)


def with_deadline(main, seconds):
    async def bounded():
        with trio.fail_after(seconds):
            await main()

    trio.run(bounded)


def test_verdicts():
    """Only what is accepted goes on; only what is rejected is blamed."""
    blamed, poisoned, heard = [], [], []

    async def judge(peer, raw):
        if raw == b"ignore":
            raise Ignore("seen")
        if raw == b"reject":
            raise Reject("no")
        if raw == b"forged":
            raise BadSignature("no")
        if raw == b"bug":
            raise RuntimeError("ours")
        return Verdict[raw.decode().upper()]

    async def last(peer, raw):
        heard.append(raw)
        return Verdict.ACCEPT

    async def first(peer, raw):
        return Verdict.ACCEPT

    async def main():
        async with line(
            3,
            [first, judge, last],
            blame=lambda peer, error: blamed.append(type(error).__name__),
            poison=lambda what, identity, raw, error: poisoned.append(raw),
        ) as hosts:
            publish = hosts[0].gossip.publish
            with pytest.raises(LimitExceeded):
                await publish(BLOCK, bytes(BLOCK.max_bytes + 1))
            for raw in (b"ignore", b"reject", b"forged", b"bug", b"accept"):
                await publish(BLOCK, raw)
            while not heard:
                await trio.sleep(0.005)
            assert heard == [b"accept"]
            assert blamed == ["Reject", "BadSignature"]
            assert poisoned == [b"bug"]

    trio.run(main)


def test_the_largest_message_and_a_late_peer():
    heard = []

    async def first(peer, raw):
        return Verdict.ACCEPT

    async def check(peer, raw):
        heard.append(raw)
        return Verdict.ACCEPT

    async def main():
        async with line(2, [first, check], topic=CHECKPOINT) as hosts:
            largest = bytes(CHECKPOINT.max_bytes)
            await hosts[0].gossip.publish(CHECKPOINT, largest)
            while not heard:
                await trio.sleep(0.005)
            assert heard == [largest]
            await hosts[1].disconnect(hosts[0].peer_id)
            await hosts[1].wait_gone(hosts[0].peer_id)
            await hosts[0].gossip.publish(CHECKPOINT, b"missed")
            await hosts[1].connect(hosts[0].addresses[0])
            while not all(host.gossip.peers(CHECKPOINT) for host in hosts):
                await trio.sleep(0.005)
            await hosts[0].gossip.publish(CHECKPOINT, b"again")
            with trio.fail_after(10):
                while sorted(heard[1:]) != [b"again", b"missed"]:
                    await trio.sleep(0.005)

    trio.run(main)


def test_a_local_fault_in_a_check_ends_the_host():
    async def first(peer, raw):
        return Verdict.ACCEPT

    async def check(peer, raw):
        raise StorageFault("disk full")

    async def main():
        async with line(2, [first, check]) as hosts:
            await hosts[0].gossip.publish(BLOCK, b"x")
            await trio.sleep_forever()

    with pytest.raises(StorageFault):
        trio.run(main)
