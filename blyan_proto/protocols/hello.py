"""/blyan/hello/1: the first words on a connection; nothing else is served before them.
docs/protocols/hello.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U8, U64, Size, message
from blyan_proto.types import Bitmap, BlockId, CheckpointId, Hash, Signature

PROTOCOL_ID = "/blyan/hello/1"
MAX_MESSAGE_BYTES = 80 * 1024  # 32 peers with 8 addresses each
MAX_ADDRESSES = 8  # DEC-C9
DEADLINE_S = 10.0


@message
class Greeting:
    """Who speaks, from which network, and what it offers."""

    network: Hash  # genesis id; another one ends the connection (GEN-01)
    software: Annotated[str, Size(1, 64)]
    roles: U8
    region: Annotated[str, Size(0, 32)]
    addresses: Annotated[
        tuple[Annotated[str, Size(1, 256)], ...], Size(0, MAX_ADDRESSES)
    ]
    model: BlockId | None
    held: Bitmap  # over the model's layout
    finalised: U64  # height of the newest checkpoint it executed
    checkpoint: CheckpointId  # that checkpoint; the genesis id at height 0


@message
class Hello:
    """A greeting signed by the peer's own key; purpose "hello"."""

    greeting: Greeting
    signature: Signature


@message
class Address:
    """Where a third peer may be reached (peer exchange)."""

    peer: Annotated[str, Size(1, 96)]
    addresses: Annotated[
        tuple[Annotated[str, Size(1, 256)], ...], Size(1, MAX_ADDRESSES)
    ]


@message
class KnownPeers:
    """Sent after both greetings: a few peers of the same network."""

    peers: Annotated[tuple[Address, ...], Size(0, 32)]
