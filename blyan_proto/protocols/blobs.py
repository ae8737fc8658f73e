"""/blyan/blobs/1: verified ranges of a TBLOCK file. docs/protocols/blobs.md

The outline (header, quantisation metadata, leaf hashes) comes first and is checked
against the blob's id; every leaf is then checked on its own.
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
DEADLINE_S = 60.0


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


REQUEST = Choice("blobs request", {1: GetOutline, 2: GetLeaves})
