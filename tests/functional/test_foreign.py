"""Another implementation of libp2p, the Go one, talks to a host of ours (DEC-E6)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from blyan_proto.codec import decode, encode
from blyan_proto.framing import frame
from blyan_proto.protocols.hello import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    Greeting,
    Hello,
    KnownPeers,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.stream import MessageStream
from blyand.protocols.hello import Greeter, Introduction
from tests.functional.p2pd import P2pd, p2pd_path, read_fields, run_p2pd

pytestmark = pytest.mark.skipif(
    p2pd_path() is None,
    reason="the Go daemon of libp2p is not here: `make foreign`, or set BLYAN_P2PD",
)

OURS, THEIRS = SigningKey(b"\x21" * 32), SigningKey(b"\x22" * 32)
NETWORK = b"\x07" * 32
ECHO = "/blyan/echo/1"
PING, IDENTIFY = "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"
BODY = bytes(range(256)) * 4096  # 1 MiB: more than a first window of yamux
SECURITY = {"tls": "/tls/1.0.0", "noise": "/noise"}


def greeting(software: str) -> Greeting:
    return Greeting(NETWORK, software, 0, "", (), None, b"", 0, NETWORK)


class Meeting:
    """A host of ours that says hello and echoes, and who introduced itself."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.met: list[tuple[str, Introduction]] = []
        greeter = Greeter(
            OURS, lambda: greeting("ours"), lambda peer: KnownPeers(()), self._meet
        )
        host.handle(PROTOCOL_ID, greeter.serve(), before_hello=True)
        host.handle(ECHO, self._echo)

    def _meet(self, peer: str, introduction: Introduction) -> None:
        self.met.append((peer, introduction))
        self.host.admit(peer)

    async def _echo(self, stream: MessageStream) -> None:
        while (body := await stream.receive_or_end(len(BODY), 5)) is not None:
            await stream.send(body)


@asynccontextmanager
async def meeting(security: str) -> AsyncIterator[tuple[Meeting, P2pd]]:
    blamed: list[object] = []
    settings = HostSettings(
        OURS, NETWORK, blame=lambda *what: blamed.append(what)  # a stranger, no enemy
    )
    with tempfile.TemporaryDirectory() as directory, trio.fail_after(20):
        async with (
            open_host(settings) as host,
            run_p2pd(Path(directory), THEIRS, security) as daemon,
        ):
            yield Meeting(host), daemon
    assert not blamed


def assert_wire(host: Host, security: str, inbound: bool) -> None:
    (wire,) = host.wires()
    assert (wire.inbound, wire.security) == (inbound, SECURITY[security])
    assert wire.muxer == "/yamux/1.0.0"


async def ping(host: Host, daemon: P2pd) -> None:
    pipe = await daemon.open(host.peer_id, PING)
    for number in range(3):
        await pipe.send(bytes([number]) * 32)
        assert await pipe.read(32) == bytes([number]) * 32
    await pipe.aclose()


async def identify(host: Host, daemon: P2pd) -> None:
    pipe = await daemon.open(host.peer_id, IDENTIFY)
    told = await pipe.read_message()
    await pipe.aclose()
    (key,) = told[1]
    assert isinstance(key, bytes)
    assert dict(read_fields(key)) == {1: 2, 2: OURS.public}  # kind 2 is secp256k1
    assert {PROTOCOL_ID.encode(), ECHO.encode(), PING.encode()} <= set(told[3])


async def hello(made: Meeting, daemon: P2pd) -> None:
    signature = THEIRS.sign(Purpose.HELLO, NETWORK, greeting("go"))
    pipe = await daemon.open(made.host.peer_id, PROTOCOL_ID)
    await pipe.send(frame(encode(Hello(greeting("go"), signature))))
    assert await pipe.read_frame() == bytes([ResultCode.OK])
    answer = decode(Hello, await pipe.read_frame(), MAX_MESSAGE_BYTES)
    assert answer.greeting == greeting("ours")
    check_signature(
        Purpose.HELLO, NETWORK, answer.greeting, OURS.public, answer.signature
    )
    await pipe.send(frame(encode(KnownPeers(()))))
    known = decode(KnownPeers, await pipe.read_frame(), MAX_MESSAGE_BYTES)
    assert known == KnownPeers(())
    with pytest.raises(EOFError):
        await pipe.read(1)
    await pipe.aclose()
    (met,) = made.met
    assert met == (daemon.peer_id, Introduction(greeting("go"), ()))


async def echo(host: Host, daemon: P2pd) -> None:
    """Both directions at once, so that windows have to be given back."""
    pipe = await daemon.open(host.peer_id, ECHO)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.send, frame(BODY))
        assert await pipe.read_frame() == BODY
    await pipe.finish()
    with pytest.raises(EOFError):
        await pipe.read(1)
    await pipe.aclose()


@pytest.mark.parametrize("security", SECURITY)
def test_it_dials_us(security: str) -> None:
    async def main() -> None:
        async with meeting(security) as (made, daemon):
            await daemon.connect(made.host.addresses[0])
            assert_wire(made.host, security, inbound=True)
            await ping(made.host, daemon)
            await identify(made.host, daemon)
            stranger = await daemon.open(made.host.peer_id, ECHO)
            await stranger.send(frame(b"before hello"))
            assert await stranger.read_frame() == bytes([ResultCode.UNAVAILABLE])
            await stranger.aclose()
            await hello(made, daemon)
            await echo(made.host, daemon)

    trio.run(main)


@pytest.mark.parametrize("security", SECURITY)
def test_we_dial_it(security: str) -> None:
    async def main() -> None:
        async with meeting(security) as (made, daemon), trio.open_nursery() as nursery:
            await daemon.serve_echo(ECHO, nursery)
            assert await made.host.connect(await daemon.address()) == daemon.peer_id
            assert_wire(made.host, security, inbound=False)
            async with made.host.request(daemon.peer_id, ECHO, 10) as stream:
                async with trio.open_nursery() as sending:
                    sending.start_soon(stream.send, BODY)
                    assert await stream.receive(len(BODY), 10) == BODY
                await stream.close_write()
            await ping(made.host, daemon)
            nursery.cancel_scope.cancel()

    trio.run(main)
