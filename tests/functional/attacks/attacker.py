"""A stranger at an address of its own, and the table of what strangers do.

A behaviour returns what the victim did about it; it fails when the victim put up with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import trio
from libp2p.crypto.keys import KeyPair
from libp2p.exceptions import BaseLibp2pError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from blyan_proto.codec import encode
from blyan_proto.framing import frame
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.hello import PROTOCOL_ID as HELLO
from blyan_proto.protocols.hello import Greeting, Hello, KnownPeers
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Role
from blyand.net.identity import key_pair_of, parse_peer_id, peer_id_of
from blyand.net.mux.driver import PROTOCOL_ID as MUX
from blyand.net.mux.driver import MuxConnection
from tests.unit.daemon.offences import stranger

PATIENCE_S = 12.0  # until a victim that does nothing has put up with it
GONE = (
    BaseLibp2pError,
    OSError,
    EOFError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ValueError,  # libp2p: a stream that ended in its negotiation
)
HUGE = b"\xff\xff\xff\xff"
NO_MORE = b""

# What a victim may do about a behaviour, the mildest first
THROTTLED = "throttled"  # it is made to wait, or told BUSY
REFUSED = "refused"  # it is not served, with a result code or a hang-up at the door
RESET = "reset"  # its stream is gone
DISCONNECTED = "disconnected"


@dataclass(frozen=True)
class Victim:
    """A daemon, as a stranger knows it."""

    peer_id: str
    port: int
    genesis: Genesis
    model: bytes = bytes(32)  # a model that it holds
    root: bytes = bytes(32)  # a blob that it holds


class Attacker:
    """A key and an address. Every connection it makes comes from that address."""

    def __init__(self, victim: Victim, address: str, patience: int = 7) -> None:
        self.victim, self.address, self.patience = victim, address, patience
        self.let_in = False  # the last connection came so far as to be greeted
        self.accountable = False  # it did what a key is judged for, over and over
        self.key = SigningKey(os.urandom(32))
        self.peer_id = peer_id_of(self.key.public)
        self.host: Any = None  # libp2p's, while `connected`

    @property
    def pair(self) -> KeyPair:
        return key_pair_of(self.key)

    async def tcp(self) -> trio.SocketStream:
        """A bare connection."""
        return await trio.open_tcp_stream(
            "127.0.0.1", self.victim.port, local_address=self.address
        )

    @asynccontextmanager
    async def connected(
        self, hello: bool = True, mux: bool = False
    ) -> AsyncIterator[Any]:
        """Connect and, unless told otherwise, say hello; give the muxed connection.

        With `mux` it speaks our multiplexer, otherwise yamux.
        """
        muxers = {MUX: MuxConnection} if mux else None
        async with stranger(pair=self.pair, muxers=muxers) as self.host:
            self.let_in = False
            await self.dial()
            if hello and await self.greet() is not ResultCode.OK:
                raise EOFError("its hello was refused")
            self.let_in = True
            yield self.muxed

    async def dial(self) -> None:
        target = Multiaddr(f"/ip4/127.0.0.1/tcp/{self.victim.port}")
        with trio.fail_after(PATIENCE_S):
            await self.host.get_network().dial_addr(
                target, parse_peer_id(self.victim.peer_id), source=(self.address, 0)
            )

    @property
    def connection(self) -> Any:
        victim = parse_peer_id(self.victim.peer_id)
        found = self.host.get_network().get_connections(victim)
        if not found:
            raise EOFError("not connected")
        return found[0]

    @property
    def muxed(self) -> Any:
        return self.connection.muxed_conn

    async def stream(self, protocol: str | None = None) -> Any:
        """Open a stream; without a protocol nothing is negotiated on it."""
        stream = await self.connection.new_stream()
        if protocol is not None:
            await self.host.multiselect_client.select_one_of(
                [protocol], MultiselectCommunicator(stream), math.inf
            )
        return stream

    async def ask(self, protocol: str, *pieces: bytes) -> ResultCode | None:
        """Send raw bytes on a stream; return the result code, None for a hang-up."""
        try:
            stream = await self.stream(protocol)
        except GONE:
            return None
        try:
            for raw in pieces:
                await stream.write(raw)
            await stream.close_write()
            with trio.fail_after(PATIENCE_S):
                answer = await exactly(stream, 5)
            return ResultCode(answer[4])
        except GONE:
            return None
        finally:
            await let_go(stream)

    async def greet(self, signer: SigningKey | None = None, **changes: Any) -> Any:
        """Say hello; return the result code, None for a hang-up."""
        return await self.ask(HELLO, self.hello(signer, **changes), self.known())

    def hello(self, signer: SigningKey | None = None, **changes: Any) -> bytes:
        genesis = self.victim.genesis
        greeting = Greeting(
            network=genesis.id,
            software="stranger/1",
            roles=int(Role.LEARN | Role.SERVE),
            region="",
            addresses=(),
            model=None,
            held=b"",
            finalised=0,
            checkpoint=genesis.id,
        )
        greeting = replace(greeting, **changes)
        signature = (signer or self.key).sign(Purpose.HELLO, genesis.id, greeting)
        return frame(encode(Hello(greeting, signature)))

    def known(self, *peers: Any) -> bytes:
        return frame(encode(KnownPeers(peers)))

    async def thrown_out(self) -> str:
        """Wait until the victim ends the connection."""
        try:
            muxed = self.muxed
        except EOFError:  # it was quick
            return DISCONNECTED
        with trio.fail_after(PATIENCE_S):
            await muxed.event_closed.wait()
        return DISCONNECTED


Behaviour = Callable[[Attacker], Awaitable[str]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(act: Behaviour) -> Behaviour:
    """Add an async function to the table."""
    assert act.__name__ not in BEHAVIOURS
    BEHAVIOURS[act.__name__] = act
    return act


async def exactly(stream: Any, size: int) -> bytes:
    read = bytearray()
    while len(read) < size:
        received = await stream.read(size - len(read))
        if not received:
            raise EOFError
        read += received
    return bytes(read)


async def let_go(stream: Any) -> None:
    with trio.move_on_after(1, shield=True):
        try:
            await stream.reset()
        except GONE:
            pass


async def hung_up(stream: trio.SocketStream) -> str:
    """Read a bare connection until the victim ends it."""
    with trio.fail_after(PATIENCE_S):
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    return DISCONNECTED


async def ended(stream: Any) -> str:
    """Read a stream until the victim gives it up."""
    with trio.fail_after(PATIENCE_S):
        try:
            while await stream.read(65536):
                pass
        except GONE:
            pass
    return RESET


async def repeated(attacker: Attacker, act: Callable[[], Awaitable[Any]]) -> str:
    """Do it again until the victim has enough, or `attacker.patience` times."""
    attacker.accountable = True
    for _ in range(attacker.patience):
        try:
            await act()
            if attacker.muxed.is_closed:
                return DISCONNECTED
        except GONE:
            return DISCONNECTED
    return REFUSED
