"""TLS sessions: who is let in, what a bad or slow peer gets, cancellation, torn writes."""

from __future__ import annotations

import datetime
import random
import ssl
from contextlib import asynccontextmanager

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from trio.testing import MockClock, memory_stream_pair

from blyan_proto.signing import SigningKey
from blyand.net import tls as session
from blyand.net.guard import tls as guard
from blyand.net.guard.tls import GuardedTls
from blyand.net.identity import key_pair_of

ONE, OTHER = (GuardedTls(key_pair_of(SigningKey(bytes([n]) * 32))) for n in (1, 2))


class Memory:
    """A raw connection of libp2p's that is no socket, as a relayed one."""

    def __init__(self, stream):
        self.stream = trio.StapledStream(stream.send_stream, stream.receive_stream)

    async def read(self, n=None):
        return await self.stream.receive_some(n)

    async def write(self, data):
        await self.stream.send_all(data)

    async def close(self):
        await self.stream.aclose()


async def sockets():
    """Two raw connections on one TCP connection over loopback."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        one = await trio.open_tcp_stream("127.0.0.1", port)
        other = await listener.accept()
    return (
        RawConnection(TrioTCPStream(one), True),
        RawConnection(TrioTCPStream(other), False),
    )


async def memory():
    return tuple(map(Memory, memory_stream_pair()))


async def secured(raws):
    found = {}

    async def keep(name, secure, *arguments):
        found[name] = await secure(*arguments)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, 0, ONE.secure_outbound, raws[0], OTHER.local_peer)
        nursery.start_soon(keep, 1, OTHER.secure_inbound, raws[1])
    return found[0], found[1]


@asynccontextmanager
async def sessions(wires):
    with trio.fail_after(10):
        one, other = await secured(await wires())
        yield one, other
        await one.close()
        await other.close()


async def read_exactly(conn, size):
    body = b""
    while len(body) < size:
        body += await conn.read(size - len(body))
    return body


both_wires = pytest.mark.parametrize("wires", [sockets, memory])


@both_wires
def test_both_know_each_other_and_exchange(wires):
    async def main():
        async with sessions(wires) as (one, other):
            assert one.remote_peer == OTHER.local_peer and one.is_initiator
            assert other.remote_peer == ONE.local_peer and not other.is_initiator
            body = random.Random(3).randbytes(700_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.write, body)
                assert await read_exactly(other, len(body)) == body
            await other.write(b"thanks")
            assert await read_exactly(one, 6) == b"thanks"

    trio.run(main)


@both_wires
def test_the_end_is_an_error_and_nothing_before_it_is_lost(wires):
    async def main():
        async with sessions(wires) as (one, other):
            await one.write(b"last words")
            await one.close()
            assert await read_exactly(other, 10) == b"last words"
            for _ in range(2):
                with pytest.raises(ConnectionClosedError):
                    await other.read(1)
            with pytest.raises(ConnectionClosedError):
                await one.write(b"x")

    trio.run(main)


def failures(main, clock=None):
    """Run; return the handshake errors of either side."""
    found = []

    async def failing(secure, *arguments):
        with pytest.raises(HandshakeFailure) as caught:
            await secure(*arguments)
        found.append(str(caught.value))

    trio.run(main, failing, clock=clock)
    return found


def test_another_peer_than_was_dialled():
    async def main(failing):
        raws = await memory()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(OTHER.secure_inbound, raws[1])
            await failing(ONE.secure_outbound, raws[0], ID(b"\x00\x01x"))

    assert "answers, not" in failures(main)[0]


def plain_context(server):
    """TLS with a certificate that says nothing of libp2p."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, now - day, now + day)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    raw_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    )
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["libp2p"])
    return context, certificate, raw_key


def load(context, certificate, raw_key, path):
    path.write_bytes(certificate + raw_key)
    context.load_cert_chain(path)
    return context


@pytest.mark.parametrize("server", [False, True])
def test_a_certificate_that_proves_no_identity(tmp_path, server):
    context = load(*plain_context(server), tmp_path / "pem")

    async def main(failing):
        raws = await memory()
        theirs = trio.SSLStream(raws[0].stream, context, server_side=server)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def shake():
                try:
                    await theirs.do_handshake()
                except trio.BrokenResourceError:
                    pass

            if server:
                await failing(ONE.secure_outbound, raws[1], OTHER.local_peer)
            else:
                await failing(ONE.secure_inbound, raws[1])

    assert "not a libp2p certificate" in failures(main)[0]


def test_no_certificate_and_an_older_tls(tmp_path):
    """A client that shows nothing; a client that speaks TLS 1.2 at most."""
    nothing = plain_context(False)[0]
    older = load(*plain_context(False), tmp_path / "pem")
    older.maximum_version = ssl.TLSVersion.TLSv1_2

    async def main(failing):
        for context in (nothing, older):
            raws = await memory()
            theirs = trio.SSLStream(raws[0].stream, context)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def shake(theirs=theirs):
                    try:
                        await theirs.do_handshake()
                    except trio.BrokenResourceError:
                        pass

                await failing(ONE.secure_inbound, raws[1])

    assert len(failures(main)) == 2


def test_a_peer_that_says_nothing_or_stops_halfway():
    async def main(failing):
        for said in (b"", bytes.fromhex("16030100c8010000c40303")):
            raws = await memory()
            await raws[0].write(said)
            started = trio.current_time()
            await failing(ONE.secure_inbound, raws[1])
            assert trio.current_time() - started == guard.HANDSHAKE_S

    found = failures(main, MockClock(autojump_threshold=0))
    assert found == ["no TLS handshake in time"] * 2


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b""]
)
def test_noise_in_the_handshake(said):
    async def main(failing):
        raws = await memory()
        await raws[0].write(said)
        await raws[0].stream.send_stream.aclose()
        await failing(ONE.secure_inbound, raws[1])

    failures(main)


def test_a_handshake_without_end():
    """Messages of one ClientHello that never ends: a bound on bytes, not on time."""

    async def main(failing):
        raws = await memory()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def talk():
                part = bytes([22, 3, 1, 0x10, 0]) + bytes(4096)
                await raws[0].write(bytes([22, 3, 1, 0, 4, 1, 1, 0xFF, 0xFF]))
                for _ in range(60):
                    await raws[0].write(part)

            await failing(ONE.secure_inbound, raws[1])
            nursery.cancel_scope.cancel()

    failures(main, MockClock())


@both_wires
def test_cancelled_reads_and_writes_lose_and_tear_nothing(wires):
    """Seeded: whatever a cancelled write left leaves before the next; order holds."""

    async def main(seed):
        chance = random.Random(seed)
        async with sessions(wires) as (one, other):
            sent, got = bytearray(), bytearray()
            done = False

            async def later(scope):
                for _ in range(chance.randrange(6)):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            async def read():
                while not done or len(got) < len(sent):
                    with trio.CancelScope() as scope:
                        nursery.start_soon(later, scope)
                        size = chance.choice([1, 3_000, 50_000])
                        received = await other.read(size)
                        assert 0 < len(received) <= size
                        got.extend(received)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for _ in range(40):
                    body = chance.randbytes(chance.choice([1, 900, 60_000]))
                    before = len(sent)
                    with trio.CancelScope() as scope:
                        nursery.start_soon(later, scope)
                        await trio.lowlevel.checkpoint()  # or else: it never began
                        sent += body  # taken at once, or with what comes next
                        await one.write(body)
                    assert len(sent) in (before, before + len(body))
                with trio.CancelScope(shield=True):
                    await one.write(b"end")
                sent += b"end"
                done = True
            assert got == sent

    for seed in range(6):
        trio.run(main, seed)


@both_wires
def test_records_without_content_are_bounded(wires):
    """A peer that only changes keys must not keep us turning without an await."""

    async def main():
        async with sessions(wires) as (one, other):
            await one.write(b"x")
            assert await read_exactly(other, 1) == b"x"
            other._decrypt_into = other._decrypt = lambda _: 0
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def write():
                    for _ in range(40):
                        await one.write(bytes(session.BARREN_BYTES // 4))

                with pytest.raises(ConnectionClosedError, match="without content"):
                    await other.receive(lambda view: None)
                with pytest.raises(ConnectionClosedError, match="without content"):
                    await other.read(1)
                nursery.cancel_scope.cancel()

    trio.run(main)
