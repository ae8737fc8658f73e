"""/blyan/hello/1, both ends: who is there, of which network, and who else it knows.
docs/protocols/hello.md"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.hello import (
    DEADLINE_S,
    MAX_MESSAGE_BYTES,
    PROTOCOL_ID,
    Address,
    Greeting,
    Hello,
    KnownPeers,
)
from blyan_proto.protocols.result import ResultCode
from blyan_proto.signing import Purpose, SigningKey, check_signature
from blyand.errors import Unavailable
from blyand.net.host import Host
from blyand.net.identity import public_key_of
from blyand.net.stream import MessageStream, Serve, expect_ok


class OtherNetwork(Unavailable):
    """The peer belongs to another network; the connection ends."""


@dataclass(frozen=True)
class Introduction:
    """What a peer told about itself and others."""

    greeting: Greeting
    known: tuple[Address, ...]


logger = logging.getLogger(__name__)

Met = Callable[[str, Introduction], object]


class Greeter:
    """Says hello and listens to it; the same words in both directions."""

    def __init__(
        self,
        key: SigningKey,
        greeting: Callable[[], Greeting],
        known_peers: Callable[[str], KnownPeers],
        met: Met,
        strange: Callable[[str], None] = lambda peer: None,
    ) -> None:
        """`met` hears of peers of our network, `strange` of those of another one."""
        self._key = key
        self._greeting = greeting
        self._known_peers = known_peers
        self._met = met
        self._strange = strange

    def _hello(self) -> Hello:
        greeting = self._greeting()
        signature = self._key.sign(Purpose.HELLO, greeting.network, greeting)
        return Hello(greeting, signature)

    def _check(self, stream: MessageStream, hello: Hello) -> Greeting:
        ours = self._greeting().network
        if hello.greeting.network != ours:
            self._strange(stream.peer)
            raise OtherNetwork(
                f"{stream.peer} is of network {hello.greeting.network.hex()[:16]}, "
                f"this node of {ours.hex()[:16]}"
            )
        check_signature(
            Purpose.HELLO,
            ours,
            hello.greeting,
            public_key_of(stream.peer),
            hello.signature,
        )
        return hello.greeting

    async def greet(self, host: Host, peer: str) -> Introduction:
        """Introduce ourselves. OtherNetwork, ProtocolError or Unavailable on failure."""
        async with host.request(peer, PROTOCOL_ID, DEADLINE_S) as stream:
            await stream.send_message(self._hello())
            await expect_ok(stream, DEADLINE_S)
            hello = await stream.receive_message(Hello, MAX_MESSAGE_BYTES, DEADLINE_S)
            greeting = self._check(stream, hello)
            await stream.send_message(self._known_peers(peer))
            await stream.close_write()
            return Introduction(greeting, await _known(stream))

    def serve(self) -> Serve:
        """Return the handler of inbound hellos; it reports each through `met`."""

        async def answer(stream: MessageStream) -> None:
            hello = await stream.receive_message(Hello, MAX_MESSAGE_BYTES, DEADLINE_S)
            is_ours = hello.greeting.network == self._greeting().network
            greeting = self._check(stream, hello) if is_ours else hello.greeting
            await stream.send_result(ResultCode.OK)
            await stream.send_message(self._hello())
            if not is_ours:  # our hello tells it why nothing follows
                logger.info("%s is of another network", stream.peer)
                self._strange(stream.peer)
                return
            known = await _known(stream)
            await stream.send_message(self._known_peers(stream.peer))
            self._met(stream.peer, Introduction(greeting, known))

        return answer


async def _known(stream: MessageStream) -> tuple[Address, ...]:
    """Read the peers that the other side knows, each once."""
    known = await stream.receive_message(KnownPeers, MAX_MESSAGE_BYTES, DEADLINE_S)
    peers: tuple[Address, ...] = known.peers
    if len({address.peer for address in peers}) != len(peers):
        raise UnexpectedMessage("a peer is listed twice")
    return peers
