"""Gossip among four hosts: everything arrives once, verdicts hold, nothing comes back."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from blyan_proto.errors import BadSignature, LimitExceeded
from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK, CHECKPOINT
from blyand.errors import StorageFault
from blyand.net.gossip import Verdict
from blyand.net.host import HostSettings, open_host
from blyand.rules.verdict import Ignore, Reject


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32, **more)


@asynccontextmanager
async def line(count, checks, topic=BLOCK, **more):
    """Hosts in a row, each listening with its own check; ready to gossip."""
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(open_host(settings(number + 1, **more)))
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
    heard = [[] for _ in range(4)]

    def checker(place):
        async def check(peer, raw):
            for _ in range(100):  # copies arrive while one is judged
                await trio.lowlevel.checkpoint()
            heard[place].append(raw)
            return Verdict.ACCEPT

        return check

    async def main():
        checks = [checker(place) for place in range(4)]
        async with line(4, checks) as hosts:
            await hosts[3].connect(hosts[0].addresses[0])  # a ring: copies
            sent = [number.to_bytes(2, "big") * 50 for number in range(200)]
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for raw in sent:
                        nursery.start_soon(hosts[0].gossip.publish, BLOCK, raw)
                while any(len(set(at)) < 200 for at in heard[1:]):
                    await trio.sleep(0.01)
            assert heard[0] == []
            assert all(sorted(at) == sorted(sent) for at in heard[1:])
            assert hosts[0].traffic()["gossip"][0] > 200 * 100

    trio.run(main)


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
            assert blamed == ["UnexpectedMessage", "BadSignature"]
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
            await hosts[1].connect(hosts[0].addresses[0])
            while not all(host.gossip.peers(CHECKPOINT) for host in hosts):
                await trio.sleep(0.005)
            await hosts[0].gossip.publish(CHECKPOINT, b"again")
            with trio.fail_after(10):
                while heard[-1] != b"again":
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
