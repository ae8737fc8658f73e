"""The block header: what is hashed, signed and linked. docs/block-format.md section 2."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from blyan_proto.codec import U8, U16, U64, Size, encode, message
from blyan_proto.constants import FORMAT_VERSION, MAX_PARENTS
from blyan_proto.digest import Domain, digest
from blyan_proto.types import (
    Account,
    BlockId,
    Chain,
    CheckpointId,
    Hash,
    PublicKey,
    Signature,
)

NO_LAYER = 0xFFFF  # a subject that belongs to no layer
INLINE = (
    0  # payload_type: one canonical message, by kind; 1.. are kept for tensor formats
)


@message
class Header:
    """One fact by one author. Its id is the digest of its canonical bytes."""

    version: U8
    network: Hash  # id of the genesis
    chain: Chain
    kind: U8  # what the payload says: blyan_proto.block.payload.KINDS
    height: U64  # 1 + the largest height among the parents, 0 without parents
    parents: Annotated[
        tuple[BlockId, ...], Size(0, MAX_PARENTS)
    ]  # depends_on, ascending
    anchor_height: U64  # the finalised checkpoint that the author saw (DEC-A2)
    anchor: CheckpointId  # the genesis id at height 0
    meta_ref: BlockId | None  # the model block obeyed; a checked reference, not an edge
    subject: Annotated[str, Size(0, 128)]  # "layer0.expert1", a dataset's name, or ""
    layer: U16
    payload_type: U8
    payload_bytes: U64
    payload_digest: Hash
    account: Account
    author: PublicKey  # the account's key at this place in the order
    sequence: U64  # grows with every block of this account on this chain, from 1
    time_ms: U64  # the author's clock, milliseconds of Unix time
    nonce: U64  # anti-spam work over the rest

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(
                f"version {self.version}, this software speaks {FORMAT_VERSION}"
            )
        if list(self.parents) != sorted(set(self.parents)):
            raise ValueError("parents are not ascending and distinct")
        if not self.parents and self.height != 0:
            raise ValueError("a block without parents has height 0")

    @property
    def id(self) -> bytes:
        """The block's id, 32 bytes."""
        return _id(self)


@lru_cache(maxsize=2048)
def _id(header: Header) -> bytes:
    return digest(Domain.BLOCK, encode(header))


@message
class SignedHeader:
    """What is kept of a block for ever, whatever becomes of its payload (DEC-B9)."""

    header: Header
    signature: Signature
