"""/blyan/providers/1: who has what. Records of a peer about itself, and the way to them.
docs/protocols/providers.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U16, Choice, Size, message
from blyan_proto.digest import Domain, digest
from blyan_proto.protocols.hello import Address
from blyan_proto.types import BlockId, Hash

PROTOCOL_ID = "/blyan/providers/1"
MAX_KEYS = 512  # of one request
MAX_PROVIDERS = 16  # of one answer
MAX_NEARER = 8
MAX_REQUEST_BYTES = MAX_KEYS * 34 + 64
MAX_ANSWER_BYTES = 60 * 1024  # 24 peers with 8 addresses each
DEADLINE_S = 5.0
TTL_S = 1800.0  # a record that its author does not renew is forgotten
KEEPERS = 4  # a record is told to as many nodes, those nearest to its shelf
SHELVES = 32


@message
class Provide:
    """The sender has all of these; each for `TTL_S` from now."""

    keys: Annotated[tuple[Hash, ...], Size(1, MAX_KEYS)]


@message
class Kept:
    """How many of the keys were taken down."""

    count: U16


@message
class Find:
    """Who has this, and who may know more?"""

    key: Hash


@message
class Found:
    """Peers that said they have it, and peers nearer to its shelf."""

    providers: Annotated[tuple[Address, ...], Size(0, MAX_PROVIDERS)]
    nearer: Annotated[tuple[Address, ...], Size(0, MAX_NEARER)]


REQUEST = Choice("providers request", {1: Provide, 2: Find})


def expert_key(model: BlockId, group: int) -> Hash:
    """Return the key under which the holders of a model's group are recorded."""
    return digest(Domain.PROVIDER, b"group", model, group.to_bytes(4, "little"))


def shelf_of(key: Hash) -> int:
    """Return the shelf, 0 … 31, on which the records of a key stand."""
    return key[0] * SHELVES // 256


def shelf_point(network: Hash, shelf: int) -> Hash:
    """Return where a shelf stands: the nodes nearest to it keep its records."""
    return digest(Domain.PROVIDER, b"shelf", network, bytes([shelf]))


def node_point(network: Hash, peer: str) -> Hash:
    """Return where a node stands."""
    return digest(Domain.PROVIDER, b"node", network, peer.encode())


def distance(one: Hash, other: Hash) -> int:
    """Return how far two points are apart: their exclusive or."""
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
