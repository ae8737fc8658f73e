"""Limits and bans on real connections: who gets in, who is served, who must go."""

from __future__ import annotations

import functools

import pytest
import trio

from blyan_proto.errors import BadSignature, UnexpectedMessage
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK
from blyand.errors import NoRoute
from blyand.metrics import Metrics
from blyand.net.gossip import Verdict
from blyand.net.host import HostSettings, open_host
from blyand.net.standing import Standing

ECHO = "/blyan/echo/1"


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32, **more)


def judged(number: int, **more) -> HostSettings:
    judge = Standing(metrics=Metrics())
    return settings(number, standing=judge, blame=judge.blame, **more)


def refusals(host) -> dict[str, int]:
    counts = host.standing._metrics.snapshot()
    begin = 'blyan_net_refused{reason="'
    return {k[len(begin) : -2]: v for k, v in counts.items() if k.startswith(begin)}


def from_address(host, address: str) -> None:
    """Let a host dial from another loopback address."""
    dial = host._network.dial_addr
    host._network.dial_addr = functools.partial(dial, source=(address, 0))


async def echo(stream):
    await stream.send(await stream.receive(64, 5))


async def until(condition) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.001)


async def code_of(client, peer) -> ResultCode | None:
    """Ask for an echo; None when it is served."""
    async with client.request(peer, ECHO, 5) as stream:
        await stream.send(b"?")
        answer = await stream.receive(64, 5)
        return None if answer == b"?" else ResultCode(answer[0])


async def stays(client, server) -> bool:
    """Connect; True if the connection is kept."""
    try:
        peer = await client.connect(server.addresses[0])
    except NoRoute:
        return False
    async with client.request(peer, ECHO, 5) as stream:
        await stream.send(b"?")
        try:
            return await stream.receive(64, 5) == b"?"
        except Exception:
            return False


def test_a_neighbourhood_gets_its_share_and_ours_are_not_counted():
    async def main():
        async with open_host(judged(1, max_per_group=2)) as server:
            server.handle(ECHO, echo, before_hello=True)
            async with (
                open_host(settings(2)) as first,
                open_host(settings(3)) as second,
                open_host(settings(4)) as third,
                open_host(settings(5)) as other,
            ):
                from_address(other, "127.9.9.9")
                assert await stays(first, server) and await stays(second, server)
                with pytest.raises(NoRoute):
                    await third.connect(server.addresses[0])
                assert refusals(server) == {"group": 1}
                assert await stays(other, server), "another neighbourhood"
                await server.connect(third.addresses[0])  # we may
                assert len(server.peers()) == 4
                await first.disconnect(server.peer_id)
                await until(lambda: len(server.peers()) == 3)
                async with open_host(settings(6)) as newcomer:
                    assert await stays(newcomer, server), "a place became free"
                    outbound = [p for p in server.peers() if not p.inbound]
                    assert [p.peer_id for p in outbound] == [third.peer_id]
            await until(lambda: not server.peers())
            assert not server._connections._inbound

    trio.run(main)


def test_a_key_has_few_connections_and_none_displaces_one_that_we_made():
    async def main():
        async with (
            open_host(judged(1, max_per_key=2)) as server,
            open_host(settings(2)) as client,
        ):
            server.handle(ECHO, echo, before_hello=True)
            await server.connect(client.addresses[0])
            (ours,) = server._network.get_connections()
            ours._created_at = 0.0  # libp2p closes the idle ones that are not young
            clones = []
            async with trio.open_nursery() as nursery:
                for _ in range(4):

                    async def clone(task_status=trio.TASK_STATUS_IGNORED):
                        async with open_host(settings(2)) as made:
                            await made.connect(server.addresses[0])
                            clones.append(made)
                            task_status.started()
                            await trio.sleep_forever()

                    await nursery.start(clone)
                await until(lambda: refusals(server).get("key") == 3)
                await until(lambda: len(server._network.get_connections()) == 2)
                assert ours in server._network.get_connections()
                assert not ours.is_closed
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_full_of_strangers_we_still_dial():
    async def main():
        async with (
            open_host(judged(1, max_connections=1)) as server,
            open_host(settings(2)) as first,
            open_host(settings(3)) as wanted,
            open_host(settings(4)) as second,
        ):
            server.handle(ECHO, echo, before_hello=True)
            assert await stays(first, server)
            await server.connect(wanted.addresses[0])
            with pytest.raises(NoRoute):
                await second.connect(server.addresses[0])
            here = {info.peer_id for info in server.peers()}
            assert here == {first.peer_id, wanted.peer_id}

    trio.run(main)


def test_a_banned_peer_is_refused_both_ways_and_let_back():
    async def main():
        async with open_host(judged(1)) as server, open_host(settings(2)) as peer:
            server.handle(ECHO, echo, before_hello=True)
            assert await stays(peer, server)
            for _ in range(3):
                server.blame(peer.peer_id, BadSignature("forged"))
            await peer.wait_gone(server.peer_id)
            with pytest.raises(NoRoute, match="unban"):
                await server.connect(peer.addresses[0])
            for n in range(1, 4):
                await peer.connect(server.addresses[0])
                await peer.wait_gone(server.peer_id)
            assert not server.peers() and refusals(server)["banned"] == 4
            server.standing.unban(peer.peer_id)
            assert await stays(peer, server)

    trio.run(main)


def test_a_throttled_peer_is_told_busy_and_another_is_served():
    async def main():
        async with (
            open_host(judged(1)) as server,
            open_host(settings(2)) as bad,
            open_host(settings(3)) as good,
        ):
            server.handle(ECHO, echo, before_hello=True)
            for client in (bad, good):
                await client.connect(server.addresses[0])
            for _ in range(5):
                server.blame(bad.peer_id, UnexpectedMessage("nonsense"))
            codes = [await code_of(bad, server.peer_id) for _ in range(5)]
            assert codes[0] is None and codes.count(ResultCode.BUSY) >= 3
            for _ in range(5):
                assert await code_of(good, server.peer_id) is None

    trio.run(main)


def test_gossip_of_a_throttled_peer_is_not_even_seen():
    heard = []

    async def check(peer, raw):
        heard.append((peer, raw))
        return Verdict.ACCEPT

    async def main():
        async with (
            open_host(judged(1)) as server,
            open_host(settings(2)) as bad,
            open_host(settings(3)) as good,
        ):
            for host in (server, bad, good):
                await host.gossip.listen(BLOCK, check if host is server else accept)
            for client in (bad, good):
                await client.connect(server.addresses[0])
            await until(lambda: len(server.gossip.peers(BLOCK)) == 2)
            await until(lambda: bad.gossip.peers(BLOCK) and good.gossip.peers(BLOCK))
            server.blame(bad.peer_id, BadSignature("forged"))
            await bad.gossip.publish(BLOCK, b"from the bad one")
            await good.connect(bad.addresses[0])
            await until(lambda: len(good.gossip.peers(BLOCK)) == 2)
            await until(lambda: len(bad.gossip.peers(BLOCK)) == 2)
            await bad.gossip.publish(BLOCK, b"by way of the good one")
            await good.gossip.publish(BLOCK, b"from the good one")
            await until(lambda: (good.peer_id, b"by way of the good one") in heard)
            await until(lambda: (good.peer_id, b"from the good one") in heard)
            assert {peer for peer, _ in heard} == {good.peer_id}

    trio.run(main)


async def accept(peer, raw):
    return Verdict.ACCEPT
