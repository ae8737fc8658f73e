"""What strangers send that ends, wedges or fills a host of stock libp2p.

Each offence is played against a victim, ours or stock; it raises AssertionError when
the victim lets itself be used, and whatever ends the victim ends the caller. As a
program this module plays them all against stock hosts and prints what became of them.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
import trio.testing
from Crypto.PublicKey import RSA
from libp2p import new_host
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.host.ping import ID as PING
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

MESHSUB = "/meshsub/1.2.0"
RAISES = "/blyan/raises/1"  # a protocol whose server raises
STALLS = "/blyan/stalls/1"  # a protocol whose server does nothing
TOPIC = "a topic"  # whose check raises on a stock host
LIVES = "lives"
INBOUND = 6  # connections that the victim takes
MULTISTREAM = b"\x13/multistream/1.0.0\n"


@dataclass
class Field:
    """A victim, and a stranger that is connected to it."""

    victim: Any  # BasicHost
    router: Any  # its GossipSub
    attacker: Any  # BasicHost
    topic: str = TOPIC
    patience_s: float = 0.6  # until a victim that does nothing counts as used

    @property
    def address(self) -> Multiaddr:
        return self.victim.get_transport_addrs()[0]

    @property
    def port(self) -> int:
        return int(str(self.address).split("/")[4])

    async def dial(self, host: Any) -> None:
        identity = self.victim.get_id()
        await host.get_network().dial_addr(self.address, identity)

    async def stream(self, protocol: str | None = None) -> Any:
        """A stream of the transport; without a protocol nothing is negotiated."""
        stream = await self.theirs(self.attacker, self.victim).new_stream()
        if protocol is not None:
            await self.attacker.multiselect_client.select_one_of(
                [protocol], MultiselectCommunicator(stream), math.inf
            )
        return stream

    @staticmethod
    def theirs(here: Any, there: Any) -> Any:
        """The connection of `here` with `there`."""
        return here.get_network().get_connections(there.get_id())[0]

    async def assert_serves(self) -> None:
        """A newcomer connects and is answered."""
        with trio.fail_after(20):
            async with stranger() as host:
                await self.dial(host)
                other = Field(self.victim, None, host)
                stream = await other.stream(PING)
                await stream.write(bytes(range(32)))
                assert await stream.read(32) == bytes(range(32))


@asynccontextmanager
async def stranger(
    pair: Any = None, muxers: Any = None, **settings: Any
) -> AsyncIterator[Any]:
    """A host that guards nothing and judges nobody, of a new key or of `pair`."""
    pair = pair or create_new_key_pair()
    host = new_host(
        key_pair=pair,
        sec_opt={NOISE: Noise(pair, noise_privkey=create_noise_key().private_key)},
        muxer_opt=muxers or {YAMUX: Yamux},
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(min_connections=0, **settings),
    )
    host.get_network().set_resource_manager(None)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            yield host
        finally:
            with trio.move_on_after(3, shield=True):
                await host.close()


async def gone(field: Field, stream: Any, enough: int = 1 << 20) -> bool:
    """Read until the other side gives a stream up; False if it does not.

    Nor does it if it sends more than `enough` bytes.
    """
    with trio.move_on_after(field.patience_s):
        try:
            while enough > 0:
                read = await stream.read(4096)
                if not read:
                    return True
                enough -= len(read)
        except Exception:
            return True
    return False


def rpc(**fields: Any) -> bytes:
    body: bytes = rpc_pb2.RPC(**fields).SerializeToString()
    assert len(body) < 1 << 14
    return bytes([len(body) & 127 | 128, len(body) >> 7]) + body


def signed(field: Field, data: bytes) -> rpc_pb2.Message:
    """A gossip message that the attacker signed as it should be."""
    message = rpc_pb2.Message(
        data=data,
        topicIDs=[field.topic],
        from_id=field.attacker.get_id().to_bytes(),
        seqno=bytes(8),
    )
    payload = PUBSUB_SIGNING_PREFIX.encode() + message.SerializeToString()
    message.signature = field.attacker.get_private_key().sign(payload)
    return message


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


# The offences


async def bad_utf8(field: Field) -> None:
    stream = await field.stream()
    await stream.write(MULTISTREAM + b"\x05\xff\xfe\xfd\xfc\n")
    assert await gone(field, stream)


async def endless_line(field: Field) -> None:
    """A line of 256 MiB in a stream's negotiation."""
    stream = await field.stream()
    await stream.write(MULTISTREAM + b"\x80\x80\x80\x80\x01" + bytes(64))
    assert await gone(field, stream), "it waits for 256 MiB"


async def endless_negotiation(field: Field) -> None:
    """Asking what there is, again and again: each question is answered at length."""
    stream = await field.stream()
    await stream.write(MULTISTREAM + b"\x03ls\n" * 500)
    assert await gone(field, stream, 64 << 10), "it answers for ever"


async def bad_protobuf(field: Field) -> None:
    stream = await field.stream(MESHSUB)
    await stream.write(b"\x02\x0a\xff")
    assert await gone(field, stream)


async def graft_of_nothing(field: Field) -> None:
    control = rpc_pb2.ControlMessage()
    control.graft.add(topicID="nobody has this")
    await (await field.stream(MESHSUB)).write(rpc(control=control))


async def bad_key(field: Field) -> None:
    message = signed(field, b"x")
    message.from_id, message.key = b"\x12\x20" + bytes(32), b"\xff"
    await (await field.stream(MESHSUB)).write(rpc(publish=[message]))


async def junk_key(field: Field) -> None:
    message = signed(field, b"x")
    message.from_id, message.key = b"\x12\x20" + bytes(32), b"\x08\x02\x12\x01\x00"
    await (await field.stream(MESHSUB)).write(rpc(publish=[message]))


async def private_key_for_a_public_one(field: Field) -> None:
    """Its primes are tested on the loop: minutes for a megabyte."""
    tested: list[int] = []
    before = RSA.import_key
    RSA.import_key = lambda raw, *_: tested.append(len(raw)) or before(raw)
    try:
        key = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=b"0" * 4096)
        deserialize_public_key(key.SerializeToString())
    except (ValueError, IndexError):
        pass
    finally:
        RSA.import_key = before
    assert not tested, f"it looks into a key of {tested[0]} bytes"


async def check_raises(field: Field) -> None:
    message = signed(field, b"raise")
    await (await field.stream(MESHSUB)).write(rpc(publish=[message]))


async def server_raises(field: Field) -> None:
    stream = await field.stream(RAISES)
    await stream.write(b"\0\0\0\x01x")
    assert await gone(field, stream)


async def heartbeat_raises(field: Field) -> None:
    """An error in the router's periodic work, as the wrong peer list gives it."""

    def mesh_heartbeat() -> Any:
        field.router.mesh_heartbeat = before
        raise KeyError("a peer that left")

    before = field.router.mesh_heartbeat
    field.router.mesh_heartbeat = mesh_heartbeat
    await until(lambda: field.router.mesh_heartbeat is before)


async def many_connections(field: Field) -> None:
    """One after the other, each closed again: stock never gives a slot back."""
    async with stranger() as host:
        for _ in range(INBOUND + 2):
            await field.dial(host)
            await field.theirs(host, field.victim).close()
            gone = field.victim.get_network().connections
            await until(lambda: host.get_id() not in gone)


async def half_open(field: Field) -> None:
    """Connections that say nothing take no place from those who do."""
    silent = [
        await trio.open_tcp_stream("127.0.0.1", field.port) for _ in range(INBOUND)
    ]
    try:
        await trio.testing.wait_all_tasks_blocked(0.05)
        await field.assert_serves()
    finally:
        for stream in silent:
            await stream.aclose()


async def overrun_window(field: Field) -> None:
    stream = await field.stream(STALLS)
    muxed = stream.muxed_stream
    frame = struct.pack("!BBHII", 0, 0, 0, muxed.stream_id, 60_000) + bytes(60_000)
    theirs = field.theirs(field.victim, field.attacker).muxed_conn
    with trio.move_on_after(2):
        for _ in range(120):
            try:
                await muxed.conn._write_frame(frame)
            except Exception:
                break  # it closed the connection
        await until(lambda: theirs.is_closed or held(theirs) >= 4 << 20)
    assert held(theirs) < 4 << 20, "it keeps what it never granted"


def held(muxed: Any) -> int:
    return sum(map(len, muxed.stream_buffers.values()))


async def unclosed_streams(field: Field) -> None:
    """Streams on which nothing is ever said."""
    muxed = field.theirs(field.attacker, field.victim).muxed_conn
    for number in range(400):
        syn = struct.pack("!BBHII", 0, 1, 1, 1001 + 2 * number, 0)
        await muxed._write_frame(syn)
    theirs = field.theirs(field.victim, field.attacker)
    await until(lambda: len(theirs.muxed_conn.streams) > 200)
    await trio.testing.wait_all_tasks_blocked(0.1)
    with trio.move_on_after(field.patience_s):
        await until(lambda: len(theirs.get_streams()) <= 260)
    assert len(theirs.get_streams()) <= 260, "it serves them all"


async def stalled_negotiation(field: Field) -> None:
    """A connection that stops after its first words is let go."""
    stream = await trio.open_tcp_stream("127.0.0.1", field.port)
    await stream.send_all(MULTISTREAM + b"\xff\xff\xff\xff\x07")  # 2 GiB follow
    with trio.move_on_after(field.patience_s) as scope:
        while await stream.receive_some():
            pass
    await stream.aclose()
    assert not scope.cancelled_caught, "it waits for 2 GiB"


async def keys_are_forgotten(field: Field) -> None:
    """What is kept of a key when it has left: stock keeps the time, for ever."""
    async with stranger() as host:
        await field.dial(host)
        await field.theirs(host, field.victim).close()
        await until(lambda: host.get_id() not in field.victim.get_network().connections)
        await trio.sleep(0.2)
        kept = field.victim.get_network().auto_connector._recent_disconnects
        assert host.get_id() not in kept, "it remembers every key"


OFFENCES: dict[str, Callable[[Field], Awaitable[None]]] = {
    offence.__name__: offence
    for offence in (
        bad_utf8,
        endless_line,
        endless_negotiation,
        bad_protobuf,
        graft_of_nothing,
        bad_key,
        junk_key,
        private_key_for_a_public_one,
        check_raises,
        server_raises,
        heartbeat_raises,
        many_connections,
        half_open,
        overrun_window,
        unclosed_streams,
        stalled_negotiation,
        keys_are_forgotten,
    )
}


@asynccontextmanager
async def stock_victim() -> AsyncIterator[tuple[Any, GossipSub]]:
    """What a program gets from libp2p without any of our guards."""

    async def raises(stream: Any) -> None:
        raise RuntimeError("a bug")

    async def stalls(stream: Any) -> None:
        await trio.sleep_forever()

    def check(peer: ID, message: Any) -> bool:
        raise RuntimeError("a bug")

    limits = dict(max_connections=INBOUND, high_watermark=INBOUND, low_watermark=0)
    async with stranger(**limits) as host:
        router = GossipSub(
            [PROTOCOL_ID_V12], 6, 4, 12, heartbeat_interval=1, do_px=True
        )
        pubsub = Pubsub(host, router, strict_signing=True)
        host.set_stream_handler(RAISES, raises)
        host.set_stream_handler(STALLS, stalls)
        async with (
            background_trio_service(router),
            background_trio_service(pubsub),
        ):
            await pubsub.wait_until_ready()
            pubsub.set_topic_validator(TOPIC, check, False)
            await pubsub.subscribe(TOPIC)
            yield host, router


async def play_against_stock(offence: Callable[[Field], Awaitable[None]]) -> None:
    async with stock_victim() as (host, router), stranger() as attacker:
        field = Field(host, router, attacker)
        await field.dial(attacker)
        await offence(field)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await field.assert_serves()


Play = Callable[[Callable[[Field], Awaitable[None]]], Awaitable[None]]


def play_all(play: Play) -> dict[str, str]:
    """Play every offence in a loop of its own, all at once; tell what became of each."""

    def outcome(name: str) -> str:
        try:
            trio.run(play, OFFENCES[name])
        except BaseException as error:
            return "; ".join(leaves(error))
        return LIVES

    with ThreadPoolExecutor(6) as pool:
        return dict(zip(OFFENCES, pool.map(outcome, OFFENCES), strict=True))


def leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [f"{type(error).__name__}: {error}"[:200]]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(play_all(play_against_stock)))
