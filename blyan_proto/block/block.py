"""Block = header + signature + payload; what may travel in one gossip message."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from blyan_proto.block.header import INLINE, NO_LAYER, Header
from blyan_proto.block.payload import KINDS, decode_payload, payload_digest
from blyan_proto.codec import Size, decode, encode, message
from blyan_proto.constants import MAX_BLOCK_BYTES, MAX_PAYLOAD_BYTES
from blyan_proto.errors import DecodeError
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.types import Signature


@message
class Block:
    """A signed header with its payload's bytes."""

    header: Header
    signature: Signature
    payload: Annotated[bytes, Size(0, MAX_PAYLOAD_BYTES)]

    @property
    def id(self) -> bytes:
        return self.header.id

    @property
    def content(self) -> Any:
        """The typed payload. DecodeError when its bytes are not canonical."""
        return _content(self.header.kind, self.payload)


@dataclass(frozen=True)
class Unsigned:
    """What a block is to say, before somebody makes and signs it."""

    payload: Any
    subject: str = ""
    layer: int = NO_LAYER
    meta_ref: bytes | None = None


@lru_cache(maxsize=256)
def _content(kind: int, payload: bytes) -> Any:
    return decode_payload(kind, payload)


def encode_block(block: Block) -> bytes:
    """Return the block's canonical bytes."""
    return encode(block)


def decode_block(raw: bytes) -> Block:
    """Return the block that `raw` encodes; nothing of it is checked but the format."""
    block: Block = decode(Block, raw, MAX_BLOCK_BYTES)
    return block


def check_wellformed(block: Block) -> None:
    """Check what needs no state: kind and chain agree, the payload is the header's.

    Raises DecodeError. The signature covers the header alone: a payload that is not the
    header's is the fault of whoever sent it, never of the author, and says nothing
    about the block's id; the other violations are the author's own (DEC-A13).
    """
    header = block.header
    kind = KINDS.get(header.kind)
    if kind is None or kind.chain != header.chain:
        raise DecodeError(
            f"kind {header.kind} does not belong on chain {header.chain.letter}"
        )
    if header.payload_type != INLINE:
        raise DecodeError(f"unknown payload type {header.payload_type}")
    if len(block.payload) != header.payload_bytes:
        raise DecodeError("the payload's length is not the header's")
    if payload_digest(block.payload) != header.payload_digest:
        raise DecodeError("the payload's digest is not the header's")
    decode_payload(header.kind, block.payload)


def check_block_signature(block: Block) -> None:
    """Raise BadSignature unless the header's author signed it."""
    header = block.header
    check_signature(
        Purpose.BLOCK, header.network, header, header.author, block.signature
    )
