"""/blyan/blobs/1: verified ranges of a TBLOCK file. docs/protocols/blobs.md

The outline (header, quantisation metadata, leaf hashes) comes first and is checked
against the blob's id; every leaf is then checked on its own. A stream carries requests
one after another, and the next may be sent before the last one is answered.
"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U32, Choice, Range, Size, message
from blyan_proto.constants import KIB, LEAF_BYTES, MAX_BLOB_BYTES
from blyan_proto.types import BlobId, Hash

PROTOCOL_ID = "/blyan/blobs/1"
MAX_LEAVES = MAX_BLOB_BYTES // LEAF_BYTES
MAX_QUANT_BYTES = 1024 * KIB
MAX_REQUEST_BYTES = 128
MAX_ANSWER_BYTES = MAX_LEAVES * 34 + MAX_QUANT_BYTES + 4 * KIB
LEAVES_PER_REQUEST = 16
MAX_STREAMS = 256  # of all peers
DEADLINE_S = 60.0  # until an outline or a leaf was taken
IDLE_S = 60.0  # of a stream without a request
LEAF_S = 16.0  # until a client gives a donor up: less than 16 KiB a second


@message
class GetOutline:
    """The part of a blob that proves the rest."""

    blob: BlobId


@message
class OutlineOf:
    """Header (128 bytes), quantisation metadata and leaf hashes, to hash to the id."""

    header: Annotated[bytes, Size(128, 128)]
    quant: Annotated[bytes, Size(0, MAX_QUANT_BYTES)]
    leaves: Annotated[tuple[Hash, ...], Size(0, MAX_LEAVES)]


@message
class GetLeaves:
    """Leaves first … first + count − 1; each comes as a frame of its own."""

    blob: BlobId
    first: U32
    count: Annotated[int, Range(1, LEAVES_PER_REQUEST)]


@message
class Leaf:
    """The bytes of one leaf."""

    index: U32
    body: Annotated[bytes, Size(1, LEAF_BYTES)]


def leaf_head(index: int, size: int) -> bytes:
    """Return what stands before the body in an encoded Leaf of `size` bytes.

    A leaf of which index and size are known is compared with it and cut, not decoded:
    decoding and comparing copy its 256 KiB three times.
    """
    return b"\x92" + _shortest(index, (0xCC, 0xCD, 0xCE), 128) + _bin(size)


def _bin(size: int) -> bytes:
    return _shortest(size, (0xC4, 0xC5, 0xC6), 0)


def _shortest(value: int, codes: tuple[int, int, int], fixed: int) -> bytes:
    if value < fixed:
        return bytes([value])
    for code, width in zip(codes, (1, 2, 4)):
        if value < 1 << 8 * width:
            return bytes([code]) + value.to_bytes(width, "big")
    raise ValueError(f"{value} is not a U32")


REQUEST = Choice("blobs request", {1: GetOutline, 2: GetLeaves})
