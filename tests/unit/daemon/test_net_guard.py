"""What one hostile connection can send: the host lives, others are served."""

from __future__ import annotations

import math
import os
import struct
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.pb import rpc_pb2

from blyan_proto.errors import BadSignature, DecodeError
from blyan_proto.signing import SigningKey
from blyan_proto.topics import BLOCK
from blyand.net.gossip import Verdict
from blyand.net.guard.host import STREAMS_PER_PEER
from blyand.net.guard.names import Pubsub, check_names
from blyand.net.guard.yamux import WINDOW_SLACK_BYTES
from blyand.net.host import HostSettings, open_host
from blyand.net.identity import parse_peer_id
from blyand.net.mux.driver import PROTOCOL_ID as MUX

NETWORK = b"\x07" * 32
ECHO = "/blyan/echo/1"


def settings(number: int, **more) -> HostSettings:
    return HostSettings(SigningKey(bytes([number]) * 32), NETWORK, **more)


async def echo(stream):
    await stream.send(await stream.receive(64, 5))


async def accept(peer, raw):
    return Verdict.ACCEPT


@asynccontextmanager
async def victim(**more):
    async with open_host(settings(1, **more)) as host:
        host.handle(ECHO, echo, before_hello=True)
        await host.gossip.listen(BLOCK, accept)
        yield host


async def assert_serves(host, number=3):
    """A newcomer connects and is answered."""
    async with open_host(settings(number)) as client:
        peer = await client.connect(host.addresses[0])
        async with client.request(peer, ECHO, 10) as stream:
            await stream.send(b"well?")
            assert await stream.receive(64, 10) == b"well?"


def only_yamux(attacker):
    """Let a host offer what strangers to our muxer offer."""
    attacker._network.upgrader.muxer_multistream.transports.pop(MUX)


async def raw_stream(attacker, peer, protocol=None):
    """A stream of the transport, without anything of ours around it."""
    connection = attacker._network.get_connections(parse_peer_id(peer))[0]
    stream = await connection.new_stream()
    if protocol is not None:
        await attacker._libp2p.multiselect_client.select_one_of(
            [protocol], MultiselectCommunicator(stream), math.inf
        )
    return stream


async def until_refused(stream):
    """Wait until the other side gives the stream up."""
    with pytest.raises(Exception), trio.fail_after(5):
        while await stream.read(4096):
            pass


def rpc(**fields) -> bytes:
    body = rpc_pb2.RPC(**fields).SerializeToString()
    assert len(body) < 1 << 14
    size = bytes([len(body) & 127 | 128, len(body) >> 7])
    return size + body


def message(**fields) -> rpc_pb2.Message:
    topic = BLOCK.on(NETWORK)
    fields = {"data": b"x", "topicIDs": [topic], "seqno": bytes(8)} | fields
    return rpc_pb2.Message(**fields)


def test_streams_that_end_a_stock_host():
    blamed = []

    async def main():
        async with victim(blame=lambda peer, error: blamed.append(error)) as host:
            async with open_host(settings(2)) as attacker:
                peer = await attacker.connect(host.addresses[0])
                stream = await raw_stream(attacker, peer)
                await stream.write(b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n")
                await until_refused(stream)
                stream = await raw_stream(attacker, peer, "/meshsub/1.2.0")
                await stream.write(b"\x02\x0a\xff")
                await until_refused(stream)
                assert [type(error) for error in blamed] == [DecodeError] * 2

                me = parse_peer_id(attacker.peer_id).to_bytes()
                junk = [
                    message(
                        from_id=b"\x12\x20" + bytes(32), key=b"\xff", signature=b"s"
                    ),
                    message(from_id=me, key=b"\x08\x02\x12\x01\x00", signature=b"s"),
                    message(from_id=me),
                    message(from_id=me, topicIDs=[]),
                ]
                control = rpc_pb2.ControlMessage()
                control.graft.add(topicID="nobody has this")
                control.prune.add(topicID="nor this", backoff=1 << 40)
                control.ihave.add(topicID="nor that", messageIDs=[b"\xff"] * 9)
                control.iwant.add(messageIDs=[b"\xfe" * 9] * 900)
                stream = await raw_stream(attacker, peer, "/meshsub/1.2.0")
                await stream.write(rpc(publish=junk, control=control))
                await stream.write(b"\xff" * 12)  # a length without an end
                await until_refused(stream)
                while len(blamed) < 5:
                    await trio.sleep(0.001)
                assert {type(error) for error in blamed[2:]} <= {
                    BadSignature,
                    DecodeError,
                }
            await assert_serves(host)

    trio.run(main)


def test_bytes_on_the_port():
    """Noise of every kind before the handshake, and peers that never say a word."""

    async def main():
        async with victim() as host:
            port = int(host.addresses[0].split("/")[4])
            silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(60)]
            for said in (
                os.urandom(4096),
                b"GET / HTTP/1.1\r\n\r\n",
                b"\xff" * 64,
                b"\x13/multistream/1.0.0\n" + os.urandom(512),
                b"\x13/multistream/1.0.0\n\x07/noise\n" + os.urandom(512),
                b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n",
                b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
            ):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    try:
                        await stream.send_all(said)
                    except trio.BrokenResourceError:
                        pass  # refused at once: too many of us are silent
            for stream in silent[: len(silent) - 8]:
                await stream.aclose()
            await assert_serves(host)
            for stream in silent:
                await stream.aclose()

    trio.run(main)


def test_inbound_slots_come_back():
    """Stock: a slot is never returned, and after the last nobody can connect."""

    async def main():
        async with victim(max_connections=3) as host, open_host(settings(2)) as client:
            for _ in range(8):
                with trio.fail_after(5):
                    peer = await client.connect(host.addresses[0])
                    await client.disconnect(peer)
                    await client.wait_gone(peer)

    trio.run(main)


def test_windows_are_enforced():
    """A peer that ignores flow control loses the stream, not our memory."""

    async def stall(stream):
        await trio.sleep_forever()

    async def main():
        async with victim() as host, open_host(settings(2)) as attacker:
            host.handle("/blyan/stall/1", stall, before_hello=True, deadline_s=None)
            only_yamux(attacker)
            peer = await attacker.connect(host.addresses[0])
            stream = await raw_stream(attacker, peer, "/blyan/stall/1")
            muxed = stream.muxed_stream
            frame = struct.pack("!BBHII", 0, 0, 0, muxed.stream_id, 60_000)
            frame += bytes(60_000)
            for _ in range(120):
                await muxed.conn._write_frame(frame)
            identity = parse_peer_id(attacker.peer_id)
            with trio.fail_after(5):
                while True:
                    connection = host._network.get_connections(identity)[0].muxed_conn
                    theirs = connection.streams[muxed.stream_id]
                    if theirs.recv_closed:
                        break
                    await trio.sleep(0.001)
            held = sum(len(window) for window in connection.stream_buffers.values())
            assert held <= theirs.target_recv_window + WINDOW_SLACK_BYTES
            await assert_serves(host)

    trio.run(main)


def test_a_body_is_never_taken_for_a_header():
    """Bodies of a header's size that look like the worst of headers, and all others."""
    blamed = []

    async def swallow(stream):
        while await stream.receive_or_end(64, 5) is not None:
            pass

    async def main():
        async with (
            victim(blame=lambda peer, error: blamed.append(error)) as host,
            open_host(settings(2)) as client,
        ):
            host.handle("/blyan/swallow/1", swallow, before_hello=True)
            peer = await client.connect(host.addresses[0])
            stream = await client.open_stream(peer, "/blyan/swallow/1")
            for size in range(65):
                await stream.send(
                    b"\0\0" + b"\xff" * size if size < 63 else bytes(size)
                )
                await stream.send(b"\xff" * 8)  # with its prefix: 12 bytes
            await stream.aclose()
            async with client.request(peer, ECHO, 5) as stream:
                await stream.send(b"still there?")
                assert await stream.receive(64, 5) == b"still there?"

    trio.run(main)
    assert not blamed


def test_cancelled_writes_spare_the_connection():
    """Other streams of a connection survive a send that ran into its deadline."""

    async def main():
        async with victim() as host, open_host(settings(2)) as client:
            host.handle("/blyan/swallow/1", trio_forever, before_hello=True)
            peer = await client.connect(host.addresses[0])
            for patience_s in (0.0, 0.001, 0.01, 0.05):
                stream = await client.open_stream(peer, "/blyan/swallow/1")
                with trio.move_on_after(patience_s):
                    await stream.send(bytes(1 << 20))
                await stream.reset()
                async with client.request(peer, ECHO, 5) as stream:
                    await stream.send(b"still there?")
                    assert await stream.receive(64, 5) == b"still there?"

    trio.run(main)


async def trio_forever(stream):
    await trio.sleep_forever()


def test_stream_flood_is_bounded_per_peer():
    async def main():
        async with victim() as host, open_host(settings(2)) as attacker:
            only_yamux(attacker)
            peer = await attacker.connect(host.addresses[0])
            connection = attacker._network.get_connections(parse_peer_id(peer))[0]
            muxed = connection.muxed_conn
            for number in range(STREAMS_PER_PEER + 20):
                syn = struct.pack("!BBHII", 0, 1, 1, 1001 + 2 * number, 0)
                await muxed._write_frame(syn)
            await assert_serves(host)
            mine = host._network.get_connections(parse_peer_id(attacker.peer_id))
            while len(mine[0].streams) > STREAMS_PER_PEER + 2:  # and our own
                await trio.sleep(0.001)

    trio.run(main)


def test_names_that_the_guard_needs():
    check_names()
    with pytest.raises(ImportError):
        check_names(((Pubsub, "gone"),))
