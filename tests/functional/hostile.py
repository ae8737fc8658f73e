"""A peer that speaks our protocols properly, and then does what a test makes it do.

It runs in a thread of its own, so that it goes on answering (or staying silent) while
the test waits for the daemons.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import trio

from blyan_proto import topics
from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.economy import Hardware, Heartbeat, Registration
from blyan_proto.block.header import INLINE, NO_LAYER, Header
from blyan_proto.block.payload import encode_payload, kind_of, payload_digest
from blyan_proto.block.work import FIRST_NONCE, find_nonce
from blyan_proto.codec import Choice, encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.framing import frame
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.hello import PROTOCOL_ID, Greeting, Hello, KnownPeers
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Chain, Role
from blyand import genesis as genesis_file
from blyand.errors import Unavailable
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.stream import MessageStream, Serve
from blyand.protocols.hello import Greeter
from tests.functional.harness import Daemon, Network, wait_for

T = TypeVar("T")
ANSWER_BYTES = 4 * 1024 * 1024
ANSWER_S = 20.0
HUGE = b"\xff\xff\xff\xff"  # the prefix of a frame of 4 GiB


class Hostile:
    """A stranger with a key, a host and a hello. Made by `hostile` only."""

    def __init__(
        self, net: Network, genesis: Genesis, dials: bool, source: str
    ) -> None:
        self.genesis = genesis
        self.key = SigningKey(os.urandom(32))
        self.host: Host
        self.asked: list[str] = []  # protocols that were asked of us and not answered
        self._net = net
        self._dials, self._source = dials, source
        self._sequence = 0
        self._registered = False
        self._token: trio.lowlevel.TrioToken
        self._ready = threading.Event()
        self._stop: trio.Event
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    @property
    def peer_id(self) -> str:
        return self.host.peer_id

    @property
    def address(self) -> str:
        return self.host.addresses[0]

    def do(self, act: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function on the stranger's loop and return what it returns."""
        return trio.from_thread.run(act, *args, trio_token=self._token)

    def meet(self, node: Daemon) -> None:
        """Connect to a node, unless it is connected, and say hello."""

        async def meeting() -> None:
            await self.host.connect(node.address)
            await self._greeter.greet(self.host, node.peer_id)
            self.host.admit(node.peer_id)

        self.do(meeting)

    def come_back(self) -> None:
        """Have every node forget what this stranger did, and meet it again."""
        for node in self._net.nodes:
            node.call("peer.unban", peer_id=self.peer_id)
            self.meet(node)

    def wait_gone(self, node: Daemon) -> None:
        """Return once a node ended the connection."""

        async def gone() -> None:
            with trio.fail_after(ANSWER_S):
                await self.host.wait_gone(node.peer_id)

        self.do(gone)

    def forge_hello(self, node: Daemon) -> ResultCode | None:
        """Say a hello that another key signed; None for a hang-up."""
        greeting = self._greeting()
        signature = SigningKey(os.urandom(32)).sign(
            Purpose.HELLO, greeting.network, greeting
        )
        return self.ask(node, PROTOCOL_ID, frame(encode(Hello(greeting, signature))))

    # On the wire

    def ask(self, node: Daemon, protocol: str, *frames: bytes) -> ResultCode | None:
        """Send raw bytes on a stream; return the result code, None for a hang-up."""

        async def exchange() -> ResultCode | None:
            stream = await self.host.open_stream(node.peer_id, protocol)
            try:
                for raw in frames:
                    await stream._write(raw)
                await stream.close_write()
                return ResultCode((await stream.receive(1, ANSWER_S))[0])
            except Unavailable:
                return None
            finally:
                await stream.reset()

        return self.do(exchange)

    def request(
        self, node: Daemon, protocol: str, message: Any, asked: Choice, kind: Any
    ) -> Any:
        """Send a typed request and return the typed answer."""

        async def exchange() -> Any:
            async with self.host.request(node.peer_id, protocol, ANSWER_S) as stream:
                await stream.send_message(message, asked)
                await stream.close_write()
                code = ResultCode((await stream.receive(1, ANSWER_S))[0])
                if code is not ResultCode.OK:
                    return code
                return await stream.receive_message(kind, ANSWER_BYTES, ANSWER_S)

        return self.do(exchange)

    def gossip(self, raw: bytes | Block) -> None:
        """Broadcast a block, or any bytes in the place of one."""
        body = raw if isinstance(raw, bytes) else encode_block(raw)
        self.do(self.host.gossip.publish, topics.BLOCK, body)

    def never_answer(self, protocol: str) -> None:
        """Accept the streams of a protocol from now on, and stay silent on them."""

        async def silence(stream: MessageStream) -> None:
            self.asked.append(protocol)
            await trio.sleep_forever()

        self.do(self._handle, protocol, silence)

    def answer_nonsense(self, protocol: str) -> None:
        """Answer OK and junk to every other request of a protocol; else be silent."""

        async def lie(stream: MessageStream) -> None:
            self.asked.append(protocol)
            if self.asked.count(protocol) % 2:
                await stream.send_result(ResultCode.OK)
                await stream.send(b"nonsense")
            else:
                await trio.sleep_forever()

        self.do(self._handle, protocol, lie)

    async def _handle(self, protocol: str, serve: Serve) -> None:
        self.host.handle(protocol, serve, concurrency=256, deadline_s=None)

    # Blocks

    def block(self, payload: Any, **changes: Any) -> Block:
        """Return a signed block as this stranger's author would make it, but for `changes`."""
        kind = kind_of(payload)
        raw = encode_payload(payload)
        parents, height = self._tip(kind.chain)
        checkpoint = self._net[0].call("chain.checkpoint")
        self._sequence += 1
        header = Header(
            version=FORMAT_VERSION,
            network=self.genesis.id,
            chain=kind.chain,
            kind=kind.code,
            height=height,
            parents=parents,
            anchor_height=checkpoint["height"],
            anchor=bytes.fromhex(checkpoint["id"]),
            meta_ref=None,
            subject="",
            layer=NO_LAYER,
            payload_type=INLINE,
            payload_bytes=len(raw),
            payload_digest=payload_digest(raw),
            account=self.key.account,
            author=self.key.public,
            sequence=self._sequence,
            time_ms=checkpoint["time_ms"],
            nonce=0,
        )
        header = replace(header, **changes)
        if "nonce" not in changes:
            bits = self.genesis.parameters.work_bits
            nonce = find_nonce(header, bits, FIRST_NONCE, 1 << 20)
            assert nonce is not None
            header = replace(header, nonce=nonce)
        return Block(header, self.key.sign(Purpose.BLOCK, header.network, header), raw)

    def _tip(self, chain: Chain) -> tuple[tuple[bytes, ...], int]:
        """Return the parents and the height of a block that follows an ordered one."""
        lines = self._net[0].call("chain.log", chain=chain.letter, limit=200)["blocks"]
        ordered = [line for line in lines if line["checkpoint"] is not None]
        if not ordered:
            return (), 0
        newest = max(ordered, key=lambda line: line["height"])
        return (bytes.fromhex(newest["id"]),), newest["height"] + 1

    def publish(self, payload: Any, node: Daemon) -> dict[str, Any]:
        """Publish a block; return what `node` tells of it once it is ordered."""
        block = self.block(payload)
        self.gossip(block)

        def ordered() -> dict[str, Any] | None:
            found = node.call("chain.block", id=block.id.hex())
            return found if found["checkpoint"] is not None else None

        found: dict[str, Any] = wait_for(ordered, "the stranger's block is ordered")
        return found

    def take_part(self, model: bytes, held: bytes) -> None:
        """Register, and claim to be alive and to hold `held`, a bitmap."""
        node = self._net[0]
        hardware = Hardware("cpu", 1 << 30, 1)
        roles = int(Role.LEARN | Role.SERVE)
        if not self._registered:
            self._registered = True
            self.publish(
                Registration(
                    FORMAT_VERSION, self.key.public, roles, "", hardware, 0, None
                ),
                node,
            )
        told = self.publish(Heartbeat(FORMAT_VERSION, model, held, 0), node)
        assert told["error"] is None, told

    # The thread

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:  # for the test's own thread
            self._failure = error
        finally:
            self._ready.set()

    async def _live(self) -> None:
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with open_host(HostSettings(self.key, self.genesis.id)) as self.host:
            if self._source:
                network = self.host._network
                network.dial_addr = functools.partial(
                    network.dial_addr, source=(self._source, 0)
                )
            self._greeter = greeter = Greeter(
                self.key, self._greeting, lambda _: KnownPeers(()), lambda *_: None
            )
            self.host.handle(PROTOCOL_ID, greeter.serve(), before_hello=True)
            for node in self._net.nodes if self._dials else ():
                await self.host.connect(node.address)
                await greeter.greet(self.host, node.peer_id)
                self.host.admit(node.peer_id)
            self._ready.set()
            await self._stop.wait()

    def _greeting(self) -> Greeting:
        return Greeting(
            network=self.genesis.id,
            software="stranger/1",
            roles=int(Role.LEARN | Role.SERVE),
            region="",
            addresses=(),
            model=None,
            held=b"",
            finalised=0,
            checkpoint=self.genesis.id,
        )

    def open(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        if self._failure is None:
            trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure


@contextmanager
def hostile(
    net: Network,
    genesis: Genesis | None = None,
    dials: bool = True,
    source: str = "",
) -> Iterator[Hostile]:
    """Give a stranger that is connected to every node and said hello.

    It is of the nodes' network, or of `genesis`; without `dials` it waits to be found.
    `source` is the loopback address that it dials from.
    """
    ours = genesis_file.load(net[0].home / "genesis.json")
    peer = Hostile(net, genesis or ours, dials, source)
    peer.open()
    try:
        yield peer
    finally:
        peer.close()
