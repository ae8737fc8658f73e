"""/blyan/span/1: a session over a run of layers; calls on one long stream.
docs/protocols/span.md"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from blyan_proto.codec import U16, U32, Choice, Size, message
from blyan_proto.constants import KIB, MIB
from blyan_proto.digest import Domain, digest
from blyan_proto.protocols.expert import Numerics
from blyan_proto.types import Hash

PROTOCOL_ID = "/blyan/span/1"
MAX_ROWS = 256  # tokens in one step (DEC-S4)
MAX_ACTIVATION_BYTES = 16 * MIB
MAX_MESSAGE_BYTES = MAX_ACTIVATION_BYTES + 4 * KIB
MAX_IN_FLIGHT_BYTES = 4 * MAX_MESSAGE_BYTES  # steps and answers of one peer
MAX_WAITING = 4  # steps of one session, the one that is computed included
DEADLINE_S = 20.0
IDLE_S = 60.0  # a session without a step for longer ends
LIFE_S = 600.0  # it does not keep a version for longer than this (DEC-B8)

SessionId = Annotated[bytes, Size(16, 16)]  # drawn at random by the client (DEC-C13)


@message
class Open:
    """Begin a session, or ask how far one is; the same fields each time."""

    session: SessionId
    model: Hash
    numerics: Numerics
    first: U16
    end: U16  # the layers first, …, end - 1
    versions: Hash  # `versions_digest` of exactly these, or STALE_VERSION (DEC-B8)
    capacity: U32  # tokens for which there is to be room

    def __post_init__(self) -> None:
        if self.first >= self.end:
            raise ValueError("a span without layers")
        if not self.capacity:
            raise ValueError("a session without room")


@message
class Step:
    """Tokens from `position` on; what the session had from there on is forgotten."""

    session: SessionId
    position: U32
    tail: U16  # how many of the last rows come back, at most those that are sent
    activations: Annotated[bytes, Size(2, MAX_ACTIVATION_BYTES)]

    def __post_init__(self) -> None:
        if self.tail > MAX_ROWS:
            raise ValueError("more rows back than a step may have")


@message
class End:
    """The session is over; its memory is free at once."""

    session: SessionId


@message
class Opened:
    """The session is there."""

    tokens: U32  # that it has; 0 when it is new


@message
class Stepped:
    """The hidden states after the span's last layer."""

    hidden: Annotated[bytes, Size(0, MAX_ACTIVATION_BYTES)]


@message
class Ended:
    """The session is gone."""

    tokens: U32  # that it had; 0 when there was none


REQUEST = Choice("span request", {1: Open, 2: Step, 3: End})
ANSWER = Choice("span answer", {1: Opened, 2: Stepped, 3: Ended})


def versions_digest(model: bytes, first: int, end: int, roots: Iterable[bytes]) -> Hash:
    """Return the name of the versions of a run of layers.

    `roots` are the group roots of all groups of these layers, in the layout's order.
    """
    place = first.to_bytes(2, "little") + end.to_bytes(2, "little")
    return digest(Domain.SPAN, model, place, *roots)
