"""The life of served streams: with their connection, within limits, until a drain."""

from __future__ import annotations

import functools
import logging
import socket

import pytest
import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.result import ResultCode
from blyand.errors import Busy, NoRoute, NotHere, TooSlow, Unavailable
from blyand.log import bound
from blyand.metrics import Metrics
from blyand.net import tcp
from blyand.net.answers import serve_calls
from blyand.net.calls import CallProtocol, open_calls
from blyand.net.host import open_host
from blyand.net.link import link_of
from blyand.net.stream import expect_ok
from tests.unit.daemon.test_net_stream import ECHO, echo, pair, settings

ASK = CallProtocol("/blyan/ask/1", max_bytes=1 << 16, deadline_s=20.0)


def test_a_handler_ends_with_its_connection():
    """Neither an exchange nor a call goes on for a peer that is gone."""
    began, ended = [], []

    async def work(what):
        began.append(what)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(what)

    async def exchange(stream):
        await stream.receive(16, 5)
        await work("exchange")

    async def answer(peer, body):
        await work("call")

    async def main():
        async with pair() as (server, client), open_calls(client) as calls:
            server.handle(ECHO, exchange, deadline_s=None)
            server.handle(
                ASK.id, serve_calls(ASK, bytes, answer), deadline_s=None, concurrency=2
            )
            async with trio.open_nursery() as nursery:

                async def call():
                    with pytest.raises(NotHere):
                        await calls.call(server.peer_id, ASK, b"", bytes)
                    ended.append("our call")

                nursery.start_soon(call)
                stream = await client.open_stream(server.peer_id, ECHO)
                await stream.send(b"x")
                while len(began) < 2:
                    await trio.sleep(0.001)
                with trio.fail_after(2):
                    await client.disconnect(server.peer_id)
                    while len(ended) < 3 or server.serving():
                        await trio.sleep(0.001)
            assert set(ended) == {"exchange", "call", "our call"}

    trio.run(main)


def test_limits_are_per_peer_and_over_all_peers():
    async def main():
        made = Metrics()
        async with (
            pair(metrics=made) as (server, first),
            open_host(settings(3)) as second,
        ):
            await second.connect(server.addresses[0])
            while len(server.peers()) < 2:
                await trio.sleep(0.001)
            server.admit(second.peer_id)
            server.handle(ECHO, echo, concurrency=2, total=3, deadline_s=None)

            async def opened(host):
                stream = await host.open_stream(server.peer_id, ECHO)
                await stream.send(b"1")
                assert await stream.receive(1, 5) == b"1"
                return stream

            async def refused(host):
                with pytest.raises(Busy):
                    async with host.request(server.peer_id, ECHO, 5) as stream:
                        await expect_ok(stream, 5)

            streams = [await opened(first), await opened(first)]
            await refused(first)  # its own two
            streams.append(await opened(second))
            await refused(second)  # everybody's three
            assert server.serving() == {ECHO: 3}
            for stream in streams:
                await stream.close_write()
            while server.serving():
                await trio.sleep(0.001)
            await opened(second)
            names = {"protocol": ECHO}
            refusals = made.counter("blyan_net_streams_refused", **names, reason="busy")
            assert refusals.value == 2
            served = made.counter("blyan_net_streams_served", **names, outcome="ok")
            while served.value < 3:
                await trio.sleep(0.001)

    trio.run(main)


def test_a_drain_lets_what_runs_finish_and_takes_nothing_new():
    go = trio.Event()

    async def slow(stream):
        body = await stream.receive(16, 5)
        if body == b"slow":
            await go.wait()
        await stream.send_result(ResultCode.OK)

    async def ask(host, peer, body):
        async with host.request(peer, ECHO, 10) as stream:
            await stream.send(body)
            await stream.close_write()
            await expect_ok(stream, 10)

    async def main():
        async with pair() as (server, client), open_host(settings(3)) as late:
            server.handle(ECHO, slow)
            done = []

            async def under_way():
                await ask(client, server.peer_id, b"slow")
                done.append("asked")

            async def draining():
                await server.drain(5)
                done.append("drained")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(under_way)
                while not server.serving():
                    await trio.sleep(0.001)
                nursery.start_soon(draining)
                with pytest.raises(Unavailable, match="UNAVAILABLE"):
                    while True:  # until the drain began
                        await ask(client, server.peer_id, b"new")
                with pytest.raises(NoRoute):
                    await late.connect(server.addresses[0])
                assert not done
                go.set()
            assert sorted(done) == ["asked", "drained"]

    trio.run(main)


def test_a_drain_is_bounded():
    async def never(stream):
        await stream.receive(16, 60)
        await trio.sleep_forever()

    async def main():
        async with pair() as (server, client):
            server.handle(ECHO, never, deadline_s=None)
            stream = await client.open_stream(server.peer_id, ECHO)
            await stream.send(b"x")
            while not server.serving():
                await trio.sleep(0.001)
            await server.drain(0.05)
            assert server.serving()
        # and closing ends it
        with pytest.raises(NotHere):
            await stream.receive(16, 5)

    trio.run(main)


class Proxy:
    """Forwards bytes between a client and a server, until it falls silent."""

    def __init__(self, port):
        self.port, self.silent = port, False

    async def serve(self, stream):
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, stream, other)
                nursery.start_soon(self._pump, other, stream)

    async def _pump(self, source, sink):
        try:
            async for received in source:
                if not self.silent:
                    await sink.send_all(received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def test_a_peer_that_vanishes_without_a_word_ends_its_calls_in_time():
    async def answer(peer, body):
        return body

    async def main():
        async with (
            open_host(settings(1)) as server,
            open_host(settings(2)) as client,
            open_calls(client) as calls,
            trio.open_nursery() as nursery,
        ):
            server.handle(ASK.id, serve_calls(ASK, bytes, answer), deadline_s=None)
            server.handle(ECHO, echo)
            proxy = Proxy(int(server.addresses[0].split("/")[4]))
            (listener,) = await nursery.start(
                functools.partial(trio.serve_tcp, host="127.0.0.1"), proxy.serve, 0
            )
            port = listener.socket.getsockname()[1]
            await client.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{server.peer_id}")
            while not server.peers():
                await trio.sleep(0.001)
            server.admit(client.peer_id)
            peer = server.peer_id
            assert await calls.call(peer, ASK, b"x", bytes) == b"x"
            proxy.silent = True
            with pytest.raises(TooSlow):
                await calls.call(peer, ASK, b"x", bytes, 0.2)
            assert not calls.in_flight()
            with pytest.raises(TooSlow):
                async with client.request(peer, ECHO, 0.2) as stream:
                    await stream.send(b"x")
                    await stream.receive(1, 5)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_sockets_are_watched_in_both_directions(monkeypatch):
    seen = []

    def note(sock):
        watch(sock)
        seen.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    watch = tcp.watch_socket
    monkeypatch.setattr(tcp, "watch_socket", note)

    async def main():
        async with pair() as (server, client):
            pass

    trio.run(main)
    assert seen == [1, tcp.UNACKNOWLEDGED_MS] * 2


def test_records_name_peer_protocol_and_number():
    log = logging.getLogger("blyand.test")
    said = []

    class Keep(logging.Handler):
        def emit(self, record):
            if record.name == "blyand.test":
                said.append((record.getMessage(), dict(bound())))

    async def answer(peer, body):
        log.warning("answering")
        return body

    async def serve(stream):
        log.warning("serving")
        await stream.send_result(ResultCode.OK)

    async def main():
        async with pair() as (server, client), open_calls(client) as calls:
            server.handle(ECHO, serve)
            server.handle(ASK.id, serve_calls(ASK, bytes, answer), deadline_s=None)
            async with client.request(server.peer_id, ECHO, 5) as stream:
                log.warning("requesting")
                await expect_ok(stream, 5)
            for number in range(2):
                await calls.call(server.peer_id, ASK, b"", bytes)
            peers = client.peer_id, server.peer_id
        log.warning("outside")
        return peers

    handler = Keep()
    logging.getLogger().addHandler(handler)
    try:
        client, server = trio.run(main)
    finally:
        logging.getLogger().removeHandler(handler)
    found = {}
    for message, fields in said:
        found.setdefault(message, []).append(fields)
    assert found["outside"] == [{}]
    assert found["requesting"] == [{"peer": server, "protocol": ECHO, "request": 1}]
    (serving,) = found["serving"]
    assert serving == {"peer": client, "protocol": ECHO, "stream": serving["stream"]}
    assert [one["call"] for one in found["answering"]] == [0, 1]
    assert {one["peer"] for one in found["answering"]} == {client}


def test_events_tell_who_and_what_but_never_the_bytes():
    events = []

    def note(event, **fields):
        events.append((event, fields))

    async def rude(stream):
        await stream.receive(64, 5)
        raise UnexpectedMessage("no")

    async def main():
        async with pair(note=note) as (server, client):
            server.handle(ECHO, rude)
            with pytest.raises(Unavailable):
                async with client.request(server.peer_id, ECHO, 5) as stream:
                    await stream.send(b"a secret")
                    await expect_ok(stream, 5)
            while not any(event == "stream" for event, _ in events):
                await trio.sleep(0.001)
            server.standing.ban(client.peer_id, 60, "for the test")
            await server.wait_gone(client.peer_id)
            while events[-1][0] != "disconnected":
                await trio.sleep(0.001)

    trio.run(main)
    assert [event for event, _ in events] == [
        "connected",
        "blame",
        "stream",
        "ban",
        "disconnected",
    ]
    blamed, stream = events[1][1], events[2][1]
    assert blamed["kind"] == "UnexpectedMessage" and blamed["reason"] == "no"
    assert (stream["protocol"], stream["outcome"]) == (ECHO, "invalid_request")
    assert "secret" not in str(events)


def test_wires_and_bytes_by_link():
    async def main():
        made = Metrics()
        async with pair(metrics=made) as (server, client):
            server.handle(ECHO, echo)
            async with client.request(server.peer_id, ECHO, 5) as stream:
                await stream.send(bytes(100))
                await stream.receive(100, 5)
                (wire,) = server.wires()
                assert (wire.peer_id, wire.inbound) == (client.peer_id, True)
                assert wire.link == "loopback" and wire.streams >= 1
                assert wire.address.startswith("/ip4/127.0.0.1/tcp/")
                assert wire.security and wire.muxer
            (other,) = client.wires()
            assert not other.inbound
            labels = {"protocol": ECHO, "link": "loopback", "region": "unknown"}
            for way in ("up", "down"):
                assert made.counter("blyan_net_bytes", **labels, way=way).value == 104
            assert server.traffic()[ECHO] == (104, 104)

    trio.run(main)


@pytest.mark.parametrize(
    "address, link",
    [
        ("/ip4/127.0.0.1/tcp/1", "loopback"),
        ("/ip4/127.9.9.9/tcp/1", "loopback"),
        ("/ip6/::1/tcp/1", "loopback"),
        ("/ip4/10.1.2.3/tcp/1", "private"),
        ("/ip4/192.168.0.9/tcp/1", "private"),
        ("/ip4/100.64.0.1/tcp/1", "private"),
        ("/ip6/fd00::1/tcp/1", "private"),
        ("/ip4/8.8.8.8/tcp/4001", "public"),
        ("/ip6/2a00:1450::1/tcp/1", "public"),
        ("/ip6/::ffff:8.8.8.8/tcp/1", "public"),
        ("/ip4/8.8.8.8/tcp/1/p2p/16Uiu/p2p-circuit", "relay"),
        ("", "unknown"),
        ("/dns4/a.example/tcp/1", "unknown"),
        ("/ip4/1.2.3/tcp/1", "unknown"),
    ],
)
def test_classes_of_links(address, link):
    assert link_of(address) == link
