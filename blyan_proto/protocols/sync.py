"""/blyan/sync/1: final checkpoints, who signs them, and states as of some of them.
docs/protocols/sync.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.block.header import SignedHeader
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import U8, U16, U64, Choice, Size, message
from blyan_proto.constants import KIB, MIB
from blyan_proto.types import BlockId, CheckpointId, Hash

PROTOCOL_ID = "/blyan/sync/1"
MAX_REQUEST_BYTES = 16 * KIB
MAX_ANSWER_BYTES = 4 * MIB
MAX_SET_BYTES = 16 * KIB
MAX_CHECKPOINTS = 128
MAX_OFFERS = 4  # states that a server holds ready
MAX_HEADERS = 256
DEADLINE_S = 30.0  # of an exchange
PART_S = 10.0  # until a client gives up a server that sends no part


@message
class GetCheckpoints:
    """Finalised checkpoints from a height on, ascending, while they fit."""

    from_height: U64
    limit: U16


@message
class GetHandovers:
    """Those of them after which another validator set signs (DEC-A11)."""

    from_height: U64
    limit: U16


@message
class GetValidators:
    """A validator set by its root."""

    root: Hash


@message
class GetOffers:
    """The checkpoints as of which the server has a state ready."""

    at_least: U64  # height of one that the client can use


@message
class GetManifest:
    """What each chunk of such a state hashes to."""

    checkpoint: CheckpointId


@message
class GetPart:
    """The pairs of a chunk of it behind a path; none: from its start on."""

    checkpoint: CheckpointId
    chunk: U8
    after: Hash | None


@message
class GetHeaders:
    """Headers of ordered blocks, also of those whose payload is no longer kept."""

    ids: Annotated[tuple[BlockId, ...], Size(1, MAX_HEADERS)]


@message
class Checkpoints:
    """Finalised checkpoints, ascending, and the peer's newest height."""

    newest: U64
    checkpoints: Annotated[tuple[FinalCheckpoint, ...], Size(0, MAX_CHECKPOINTS)]


@message
class Offers:
    """The checkpoints as of which a state is ready, the newest first."""

    newest: U64
    checkpoints: Annotated[tuple[FinalCheckpoint, ...], Size(0, MAX_OFFERS)]


@message
class Headers:
    """Headers in the order asked for; those that are absent are left out."""

    headers: Annotated[tuple[SignedHeader, ...], Size(0, MAX_HEADERS)]


REQUEST = Choice(
    "sync request",
    {
        1: GetCheckpoints,
        2: GetHandovers,
        3: GetValidators,
        4: GetOffers,
        5: GetManifest,
        6: GetPart,
        7: GetHeaders,
    },
)
