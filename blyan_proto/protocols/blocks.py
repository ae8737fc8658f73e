"""/blyan/blocks/1: blocks by id, and which unordered blocks a peer has that we lack.
docs/protocols/blocks.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.codec import U16, U32, Choice, Size, message
from blyan_proto.constants import KIB, MIB
from blyan_proto.digest import Domain, digest
from blyan_proto.types import BlockId

PROTOCOL_ID = "/blyan/blocks/1"
MAX_REQUEST_BYTES = 16 * KIB
MAX_ANSWER_BYTES = MIB  # of blocks in the answer to one GetBlocks, all frames together
MAX_FRAME_BYTES = 192 * KIB  # of one Blocks or Compared
MAX_IDS = 256  # DEC-C12
DEADLINE_S = 30.0  # of an exchange
SILENCE_S = 10.0  # without a frame, a client gives up

PARTS = 16  # into which a range splits: one more hexadecimal digit
MAX_DIGITS = 32
MAX_RANGES = 256  # of one request
MAX_SPLITS = 32  # ranges that one answer splits
MAX_LISTED = 4096  # ids of one answer
LIST_AT = 16  # a range with no more ids is listed rather than split
FINGERPRINT_BYTES = 16

Prefix = Annotated[str, Size(0, MAX_DIGITS)]  # lower-case hexadecimal digits
Fingerprint = Annotated[bytes, Size(FINGERPRINT_BYTES, FINGERPRINT_BYTES)]


@message
class GetBlocks:
    """Blocks by id."""

    ids: Annotated[tuple[BlockId, ...], Size(1, MAX_IDS)]


@message
class Blocks:
    """One frame of the answer: blocks in the order asked for, and what of them is gone."""

    blocks: Annotated[tuple[Block, ...], Size(0, MAX_IDS)]
    pruned: Annotated[tuple[BlockId, ...], Size(0, MAX_IDS)]  # payloads not kept
    answered: U16  # ids, from the first of the request on, that are dealt with


@message
class Range:
    """The ids that begin with some digits."""

    prefix: Prefix
    known: Fingerprint | None  # of what the client has in it; none: list it

    def __post_init__(self) -> None:
        if set(self.prefix) - set("0123456789abcdef"):
            raise ValueError("a prefix of other than hexadecimal digits")


@message
class Compare:
    """Ranges of unordered blocks that the client wants to know about."""

    ranges: Annotated[tuple[Range, ...], Size(1, MAX_RANGES)]

    def __post_init__(self) -> None:
        before = None
        for one in self.ranges:
            if before is not None and (
                one.prefix <= before or one.prefix.startswith(before)
            ):
                raise ValueError("ranges that do not ascend, or overlap")
            before = one.prefix


@message
class Sum:
    """What some ids add up to."""

    count: U32
    fingerprint: Fingerprint


@message
class Held:
    """What the server has in one range: what the client knows, all ids, or 16 sums."""

    count: U32  # ids in the range
    ids: Annotated[tuple[BlockId, ...], Size(0, MAX_LISTED)]
    parts: Annotated[tuple[Sum, ...], Size(0, PARTS)]

    def __post_init__(self) -> None:
        if len(self.parts) not in (0, PARTS) or (self.ids and self.parts):
            raise ValueError("neither ids nor 16 sums")
        if len(self.ids) > self.count:
            raise ValueError("more ids than there are")


@message
class Compared:
    """The answer for the first ranges of the request, in its order."""

    ranges: Annotated[tuple[Held, ...], Size(1, MAX_RANGES)]


REQUEST = Choice("blocks request", {1: GetBlocks, 2: Compare})


def sum_of(count: int, total: int) -> Sum:
    """Return what `count` ids add up to whose sum, as big-endian integers, is `total`."""
    added = (total % 2**256).to_bytes(32, "big")
    whole = digest(Domain.RANGE, count.to_bytes(8, "big"), added)
    return Sum(count, whole[:FINGERPRINT_BYTES])
