"""/blyan/edge/1: signed deltas of a region on their way to far primaries, and back.
docs/protocols/edge.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U32, Choice, Size, message
from blyan_proto.constants import MAX_CONTRIBUTIONS
from blyan_proto.protocols.delta import MAX_BUNDLE_BYTES, Bundle, Receipt
from blyan_proto.types import Account, BlobId

PROTOCOL_ID = "/blyan/edge/1"
MAX_PARCEL_BYTES = MAX_BUNDLE_BYTES
MAX_BUNDLES = 256  # of one parcel
MAX_RECEIPTS_BYTES = 4 * 1024 * 1024
MAX_PIECES_BYTES = MAX_BUNDLE_BYTES
DEADLINE_S = 60.0


@message
class Addressed:
    """A learner's bundle, and whom it is for."""

    to: Account
    bundle: Bundle  # as /blyan/delta/1 would carry it, signed by the learner


@message
class Parcel:
    """Bundles for the receiver itself, or for primaries that it is to pass them on to."""

    bundles: Annotated[tuple[Addressed, ...], Size(1, MAX_BUNDLES)]


@message
class Span:
    """A part of an update's blob: one delta."""

    offset: U32
    bytes: U32


@message
class GetPieces:
    """Ask for some deltas of an update, not for all of its blob."""

    blob: BlobId
    spans: Annotated[tuple[Span, ...], Size(1, MAX_CONTRIBUTIONS)]


@message
class Replies:
    """What the primaries answered, in the parcel's order; none: no answer came in time."""

    receipts: Annotated[tuple[Receipt | None, ...], Size(1, MAX_BUNDLES)]


@message
class Pieces:
    """The parts that were asked for, in order."""

    pieces: Annotated[
        tuple[Annotated[bytes, Size(0, MAX_PIECES_BYTES)], ...],
        Size(1, MAX_CONTRIBUTIONS),
    ]


REQUEST = Choice("edge request", {1: Parcel, 2: GetPieces})
ANSWER = Choice("edge answer", {1: Replies, 2: Pieces})
