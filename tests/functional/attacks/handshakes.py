"""Handshakes of noise and TLS that are broken, replayed, or somebody else's."""

from __future__ import annotations

import ssl
import struct
from typing import Any

import trio
from libp2p.crypto.pb import crypto_pb2
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.io import NoiseHandshakeReadWriter
from libp2p.security.noise.messages import NoiseHandshakePayload
from libp2p.security.noise.pb import noise_pb2
from noise.connection import Keypair, NoiseConnection

from tests.functional.attacks.attacker import (
    DISCONNECTED,
    GONE,
    REFUSED,
    Attacker,
    behaviour,
    hung_up,
)
from tests.functional.attacks.raw import MULTISTREAM

NOISE = b"\x07/noise\n"
TLS = b"\x0b/tls/1.0.0\n"


class Wire:
    """A socket with the calls that libp2p's handshakes make."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.sent: list[bytes] = []

    async def read(self, size: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(size))

    async def write(self, raw: bytes) -> None:
        self.sent.append(raw)
        await self.stream.send_all(raw)

    async def close(self) -> None:
        await self.stream.aclose()

    def get_remote_address(self) -> None:
        return None


async def choose(attacker: Attacker, protocol: bytes) -> trio.SocketStream:
    """Connect and agree on a protocol that secures the connection."""
    stream = await attacker.tcp()
    await stream.send_all(MULTISTREAM + protocol)
    wanted, read = len(MULTISTREAM + protocol), b""
    while len(read) < wanted:
        received = await stream.receive_some(wanted - len(read))
        if not received:
            raise EOFError("refused")
        read += received
    return stream


async def send(stream: trio.SocketStream, raw: bytes) -> str:
    try:
        await stream.send_all(raw)
    except trio.BrokenResourceError:
        pass
    return await hung_up(stream)


async def noise(attacker: Attacker, payload: bytes) -> tuple[Wire, str]:
    """Shake hands as the XX pattern wants it, with a payload of our choice."""
    wire = Wire(await choose(attacker, NOISE))
    state = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    state.set_keypair_from_private_bytes(Keypair.STATIC, b"\x42" * 32)
    state.set_as_initiator()
    state.start_handshake()
    ends: Any = NoiseHandshakeReadWriter(RawConnection(wire, True), state)
    await ends.write_msg(b"")
    await ends.read_msg()
    try:
        await ends.write_msg(payload)
    except GONE:
        return wire, DISCONNECTED
    return wire, await hung_up(wire.stream)


def payload_of(key: bytes, signature: bytes) -> bytes:
    told = noise_pb2.NoiseHandshakePayload(identity_key=key, identity_sig=signature)
    return bytes(told.SerializeToString())


@behaviour
async def noise_garbage(attacker: Attacker) -> str:
    stream = await choose(attacker, NOISE)
    return await send(stream, b"\x00\x20" + bytes(32) + b"\x00\x40" + bytes(64))


@behaviour
async def noise_frame_that_never_comes(attacker: Attacker) -> str:
    return await send(await choose(attacker, NOISE), b"\xff\xff" + bytes(100))


@behaviour
async def noise_signature_of_nobody(attacker: Attacker) -> str:
    key = attacker.pair.public_key.serialize()
    return (await noise(attacker, payload_of(key, bytes(64))))[1]


@behaviour
async def noise_key_of_another(attacker: Attacker) -> str:
    other = Attacker(attacker.victim, attacker.address)
    signature = attacker.pair.private_key.sign(b"noise-libp2p-static-key:" + bytes(32))
    key = other.pair.public_key.serialize()
    return (await noise(attacker, payload_of(key, signature)))[1]


@behaviour
async def noise_private_rsa_key(attacker: Attacker) -> str:
    """Tens of kilobytes whose primality a stock host tests."""
    key = crypto_pb2.PublicKey(key_type=crypto_pb2.RSA, data=b"\x30" + bytes(40_000))
    told = payload_of(key.SerializeToString(), bytes(64))
    return (await noise(attacker, told))[1]


@behaviour
async def noise_payload_is_no_protobuf(attacker: Attacker) -> str:
    return (await noise(attacker, b"\x0a\xff\xff"))[1]


@behaviour
async def noise_replayed(attacker: Attacker) -> str:
    """The same bytes again: the victim's ephemeral key is another one."""
    good = NoiseHandshakePayload(attacker.pair.public_key, bytes(64)).serialize()
    wire, _ = await noise(attacker, good)
    again = await choose(attacker, NOISE)
    return await send(again, b"".join(wire.sent))


async def tls(attacker: Attacker, context: ssl.SSLContext) -> str:
    try:
        stream = await choose(attacker, TLS)
    except EOFError:
        return REFUSED
    secured = trio.SSLStream(stream, context, https_compatible=True)
    try:
        with trio.fail_after(12):
            await secured.send_all(MULTISTREAM)
            while await secured.receive_some(4096):
                pass
    except (trio.BrokenResourceError, ssl.SSLError):
        pass
    await trio.aclose_forcefully(secured)
    return DISCONNECTED


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@behaviour
async def tls_without_a_certificate(attacker: Attacker) -> str:
    return await tls(attacker, anonymous())


@behaviour
async def tls_of_an_older_version(attacker: Attacker) -> str:
    context = anonymous()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return await tls(attacker, context)


@behaviour
async def tls_garbage(attacker: Attacker) -> str:
    try:
        stream = await choose(attacker, TLS)
    except EOFError:
        return REFUSED
    return await send(stream, b"\x16\x03\x01" + struct.pack("!H", 16384) + bytes(16384))


@behaviour
async def tls_hello_in_drops(attacker: Attacker) -> str:
    try:
        stream = await choose(attacker, TLS)
    except EOFError:
        return REFUSED
    with trio.fail_after(12):
        try:
            for _ in range(40):
                await stream.send_all(b"\x16")
                await trio.sleep(0.3)
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    return DISCONNECTED
