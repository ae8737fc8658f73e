"""Streams between two hosts over real TCP: framing, deadlines, refusals, blame."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager

import pytest
import trio

from blyan_proto.codec import U32, Choice, message
from blyan_proto.errors import DecodeError, LimitExceeded
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import SigningKey
from blyand.errors import (
    Busy,
    ConfigFault,
    NoRoute,
    NotHere,
    StaleVersion,
    StorageFault,
    TooSlow,
    Unavailable,
)
from blyand.net.host import HostSettings, open_host
from blyand.net.identity import peer_id_of, public_key_of
from blyand.net.mux.stream import MuxStream
from blyand.net.stream import expect_ok

ECHO = "/blyan/echo/1"


@message
class Number:
    """A test message."""

    value: U32


NUMBERS = Choice("numbers", {1: Number})


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32, **more)


@asynccontextmanager
async def pair(**more):
    """A server (with `more` settings) and a connected client it has admitted."""
    async with (
        open_host(settings(1, **more)) as server,
        open_host(settings(2)) as client,
    ):
        await client.connect(server.addresses[0])
        while not server.peers():
            await trio.sleep(0.001)
        server.admit(client.peer_id)
        yield server, client


async def echo(stream):
    while (body := await stream.receive_or_end(1 << 26, 5)) is not None:
        await stream.send(body)


def test_ids_embed_keys():
    key = SigningKey(b"\x01" * 32).public
    assert public_key_of(peer_id_of(key)) == key
    for wrong in ("", "0OIl", "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"):
        with pytest.raises(DecodeError):
            public_key_of(wrong)
    with pytest.raises(DecodeError):
        peer_id_of(b"\x05" * 33)


def test_echo_large_and_typed():
    async def main():
        async with pair() as (server, client):
            assert server.public_key_of(client.peer_id) == settings(2).key.public
            server.handle(ECHO, echo, deadline_s=None)
            stream = await client.open_stream(server.peer_id, ECHO)
            for size in (0, 1, 70_000, 3_000_000):
                await stream.send(bytes(size))
                assert await stream.receive(size, 5) == bytes(size)
            await stream.send_message(Number(7), NUMBERS)
            assert await stream.receive_message(NUMBERS, 64, 5) == Number(7)
            await stream.send_message(Number(8))
            assert await stream.receive_message(Number, 64, 5) == Number(8)
            # A receive that ran into its deadline lost nothing.
            with pytest.raises(TooSlow):
                await stream.receive(64, 0.01)
            await stream.send(b"after")
            assert await stream.receive(64, 5) == b"after"
            await stream.close_write()
            assert await stream.receive_or_end(64, 5) is None
            await stream.aclose()
            up, down = client.traffic()[ECHO]
            assert up == down > 3_000_000

    trio.run(main)


def test_results_and_blame():
    """Each kind of error in a handler becomes its code; only formats are blamed."""
    blamed = []

    async def serve(stream):
        wish = await stream.receive(16, 5)
        if wish == b"busy":
            raise Busy("no room")
        if wish == b"stale":
            await stream.send_result(ResultCode.OK)  # nothing has left yet
            raise StaleVersion("old")
        if wish == b"broken":
            raise RuntimeError("a bug")
        await stream.send_result(ResultCode.OK)
        await stream.send(wish)

    async def ask(host, peer, wish):
        async with host.request(peer, ECHO, 5) as stream:
            await stream.send(wish)
            await stream.close_write()
            await expect_ok(stream, 5)
            return await stream.receive(16, 5)

    async def main():
        async with pair(blame=lambda peer, error: blamed.append(error)) as (
            server,
            client,
        ):
            server.handle(ECHO, serve)
            for wish, error in (
                (b"busy", Busy),
                (b"stale", StaleVersion),
                (b"broken", Unavailable),
                (b"more than sixteen bytes", Unavailable),
            ):
                with pytest.raises(error):
                    await ask(client, server.peer_id, wish)
            assert await ask(client, server.peer_id, b"fine") == b"fine"

    trio.run(main)
    assert [type(error) for error in blamed] == [LimitExceeded]


def test_client_bounds_and_deadlines():
    async def serve(stream):
        if await stream.receive(16, 5) == b"long":
            await stream.send(bytes(100))
        else:
            await trio.sleep_forever()

    async def main():
        async with pair() as (server, client):
            server.handle(ECHO, serve, deadline_s=0.2)
            with pytest.raises(LimitExceeded):
                async with client.request(server.peer_id, ECHO, 5) as stream:
                    await stream.send(b"long")
                    await stream.receive(99, 5)
            with pytest.raises(TooSlow):
                async with client.request(server.peer_id, ECHO, 0.05) as stream:
                    await stream.receive(99, 5)
            # A silent client is let go at the server's deadline.
            stream = await client.open_stream(server.peer_id, ECHO)
            with pytest.raises(NotHere):
                await stream.receive(99, 5)
            with pytest.raises(NotHere):
                await client.open_stream(server.peer_id, "/blyan/nothing/1")
            with pytest.raises(NotHere):
                await client.open_stream(peer_id_of(settings(9).key.public), ECHO)
            with pytest.raises(NoRoute):
                await client.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{client.peer_id}")
            wrong = server.addresses[0].replace(server.peer_id, client.peer_id[:-1])
            for bad in (wrong, "/ip4/1.2.3.4/tcp/1", "nonsense", "/x/p2p/" + "z" * 200):
                with pytest.raises((DecodeError, NoRoute)):
                    await client.connect(bad)

    trio.run(main)


def test_strangers_are_served_hello_only():
    async def hello(stream):
        await stream.receive(16, 5)
        server.admit(stream.peer)
        await stream.send_result(ResultCode.OK)

    async def main():
        nonlocal server
        async with open_host(settings(1)) as server, open_host(settings(2)) as client:
            server.handle("/blyan/hello/1", hello, before_hello=True)
            server.handle(ECHO, echo)
            peer = await client.connect(server.addresses[0])
            with pytest.raises(Unavailable):
                async with client.request(peer, ECHO, 5) as stream:
                    await stream.send(b"x")
                    await expect_ok(stream, 5)
            async with client.request(peer, "/blyan/hello/1", 5) as stream:
                await stream.send(b"hello")
                await expect_ok(stream, 5)
            async with client.request(peer, ECHO, 5) as stream:
                await stream.send(b"x")
                assert await stream.receive(5, 5) == b"x"
            assert server.peers()[0].admitted and server.peers()[0].inbound

    server = None
    trio.run(main)


def test_busy_above_concurrency():
    async def main():
        async with pair() as (server, client):
            server.handle(ECHO, echo, concurrency=1, deadline_s=None)
            first = await client.open_stream(server.peer_id, ECHO)
            await first.send(b"1")
            assert await first.receive(1, 5) == b"1"
            with pytest.raises(Busy):
                async with client.request(server.peer_id, ECHO, 5) as stream:
                    await expect_ok(stream, 5)
            await first.close_write()
            assert await first.receive_or_end(1, 5) is None
            async with client.request(server.peer_id, ECHO, 5) as stream:
                await stream.send(b"2")
                assert await stream.receive(1, 5) == b"2"

    trio.run(main)


def test_bulk_reaches_the_muxer_at_both_ends(monkeypatch):
    seen = []
    priority = MuxStream.set_priority

    def watched(stream, bulk):
        seen.append((stream.conn.is_initiator, bulk))
        priority(stream, bulk)

    monkeypatch.setattr(MuxStream, "set_priority", watched)

    async def main():
        async with pair() as (server, client):
            for name, bulk in (("/blyan/small/1", False), ("/blyan/big/1", True)):
                server.handle(name, echo, bulk=bulk)
                seen.clear()
                async with client.request(server.peer_id, name, 5, bulk=bulk) as ours:
                    await ours.send(b"x")
                    await ours.receive(1, 5)
                assert set(seen) == {(True, bulk), (False, bulk)}

    trio.run(main)


def test_comings_and_goings():
    heard = []

    async def main():
        async with open_host(settings(1)) as server:

            async def came(info):
                heard.append(("came", info.inbound))

            async def went(info):
                heard.append(("went", info.inbound))
                left.set()

            left = trio.Event()
            server.on_connected(came)
            server.on_disconnected(went)
            async with open_host(settings(2)) as client:
                began = time.perf_counter()
                peer = await client.connect(server.addresses[0])
                assert peer == await client.connect(server.addresses[0])
                assert time.perf_counter() - began < 2
                await client.disconnect(peer)
                await client.wait_gone(peer)
                await left.wait()
                server.standing.ban(client.peer_id, 60, "a test")
                await client.connect(server.addresses[0])
                await client.wait_gone(peer)
            assert not server.peers()

    trio.run(main)
    assert heard == [("came", True), ("went", True)]


def test_a_local_fault_ends_the_host():
    async def serve(stream):
        raise StorageFault("disk full")

    async def main():
        async with pair() as (server, client):
            server.handle(ECHO, serve)
            with pytest.raises(Unavailable):
                async with client.request(server.peer_id, ECHO, 5) as stream:
                    await expect_ok(stream, 5)
            await trio.sleep_forever()

    with pytest.raises(StorageFault):
        trio.run(main)


def test_a_port_in_use_is_one_sentence():
    async def main():
        async with open_host(settings(1)) as first:
            taken = first.addresses[0].split("/p2p/")[0]
            with pytest.raises(ConfigFault, match="in use; choose another"):
                async with open_host(settings(2, listen=(taken,))):
                    pass
        async with open_host(settings(2, listen=(taken,))) as second:
            assert second.addresses[0].startswith(taken)
        for wrong in ("/ip4/127.0.0.1", "/dns4/localhost/tcp/0", "/ip4/8.8.8.8/tcp/99"):
            with pytest.raises(ConfigFault):
                async with open_host(settings(2, listen=(wrong,))):
                    pass

    trio.run(main)
