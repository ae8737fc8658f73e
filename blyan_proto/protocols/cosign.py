"""/blyan/cosign/1: a primary asks another rank to recompute its update and to sign it.
docs/protocols/cosign.md"""

from __future__ import annotations

import enum

from blyan_proto.block.model import TileUpdate
from blyan_proto.codec import Choice, message
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.types import Signature

PROTOCOL_ID = "/blyan/cosign/1"
MAX_REQUEST_BYTES = MAX_PAYLOAD_BYTES
MAX_ANSWER_BYTES = 1024
MAX_AT_ONCE = 16  # requests of one peer
DEADLINE_S = 30.0


@message
class Draft:
    """An update as its author would publish it alone: with the author's cosignature."""

    update: TileUpdate

    def __post_init__(self) -> None:
        if len(self.update.cosignatures) != 1:
            raise ValueError("a draft has one cosignature, its author's")


@message
class Cosigned:
    """The rank got the same result: its signature over the update's claim."""

    signature: Signature


class Reason(enum.IntEnum):
    """Why a rank does not sign."""

    NO_RANK = 1  # one of the two is no rank of an open round here, or may not sign now
    OTHER_HEAD = 2  # the group stands at another version here
    NO_DELTAS = 3  # nobody gave the deltas in time
    OTHER_RESULT = 4  # the result is not the one computed here
    PROMISED = 5  # another claim of this rank and lease was looked at before


@message
class Declined:
    """No signature."""

    reason: Reason


REQUEST = Choice("cosign request", {1: Draft})
ANSWER = Choice("cosign answer", {1: Cosigned, 2: Declined})
