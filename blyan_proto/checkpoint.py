"""The checkpoint: an agreed order of blocks and the state after them. docs/consensus.md.

A checkpoint is no block. Validators propose it and vote on it; with the precommits of a
quorum it is final.
"""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U8, U32, U64, Size, encode, message
from blyan_proto.constants import (
    FORMAT_VERSION,
    MAX_CHECKPOINT_BLOCKS,
    MAX_VALIDATORS,
)
from blyan_proto.digest import Domain, digest
from blyan_proto.types import BlockId, CheckpointId, Hash, PublicKey, Signature


@message
class ReceiptStatement:
    """What a holder signs when it has every blob of a block, checked (DEC-A4);
    purpose "blob receipt"."""

    version: U8
    block: BlockId


@message
class BlobReceipt:
    """One holder's receipt for all blobs of one block."""

    block: BlockId
    signer: PublicKey
    signature: Signature

    @property
    def statement(self) -> ReceiptStatement:
        return ReceiptStatement(FORMAT_VERSION, self.block)


MAX_RECEIPTS = 64  # in one message


@message
class Receipts:
    """Receipts as they are broadcast, ascending by block and signer."""

    receipts: Annotated[tuple[BlobReceipt, ...], Size(1, MAX_RECEIPTS)]

    def __post_init__(self) -> None:
        places = [(one.block, one.signer) for one in self.receipts]
        if any(left >= right for left, right in zip(places, places[1:])):
            raise ValueError("receipts are not ascending by block and signer")


@message
class Checkpoint:
    """Everything up to here, in this order, gives this state."""

    version: U8
    network: Hash
    height: U64  # 0 is the genesis itself
    parent: CheckpointId  # the genesis id at height 1
    round: U32  # consensus round that first proposed it; the votes say which decided
    proposer: PublicKey  # who first proposed it
    time_ms: U64  # chain time: the first proposer's clock, above the parent's
    beacon: Hash  # H(previous beacon, preimage) (DEC-A7)
    preimage: Hash  # next element of the proposer's hash chain
    blocks: Annotated[tuple[BlockId, ...], Size(0, MAX_CHECKPOINT_BLOCKS)]
    receipts: Annotated[tuple[BlobReceipt, ...], Size(0, MAX_CHECKPOINT_BLOCKS)]
    state_root: Hash  # after executing `blocks`
    validators_root: Hash  # of the set that signs this checkpoint
    next_validators_root: Hash  # of the set that signs the next one (DEC-A11)
    # Bit i: validator i's precommit for the parent is known to the proposer (VAL-05).
    parent_signers: Annotated[bytes, Size(0, MAX_VALIDATORS // 8)] = b""

    def __post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ValueError(
                f"version {self.version}, this software speaks {FORMAT_VERSION}"
            )

    @property
    def id(self) -> bytes:
        return digest(Domain.CHECKPOINT, encode(self))


@message
class ProposalStatement:
    """What a proposer signs; purpose "checkpoint proposal"."""

    version: U8
    height: U64
    round: U32
    valid_round: U32 | None  # round whose prevotes locked it; none: a fresh one
    checkpoint: CheckpointId


@message
class Proposal:
    """A checkpoint put to the vote of one round."""

    statement: ProposalStatement
    checkpoint: Checkpoint
    proposer: PublicKey  # of this round; the checkpoint names who made it first
    signature: Signature


@message
class SignedProposal:
    """What a proposer signed, without the checkpoint: small enough for evidence."""

    statement: ProposalStatement
    proposer: PublicKey
    signature: Signature


class VoteStage(enum.IntEnum):
    """The two votes of a Tendermint round."""

    PREVOTE = 1
    PRECOMMIT = 2


@message
class VoteStatement:
    """What a validator signs; purpose "checkpoint vote"."""

    version: U8
    stage: VoteStage
    height: U64
    round: U32
    checkpoint: CheckpointId | None  # none: this round decides nothing


@message
class Vote:
    """A vote with its signature."""

    statement: VoteStatement
    voter: PublicKey
    signature: Signature


@message
class FinalCheckpoint:
    """A checkpoint with the precommits that finalised it."""

    checkpoint: Checkpoint
    votes: Annotated[tuple[Vote, ...], Size(1, MAX_VALIDATORS)]


MAX_FINAL_CHECKPOINT_BYTES = 192 * 1024


def next_beacon(beacon: bytes, preimage: bytes) -> bytes:
    """Return the beacon after a proposer revealed `preimage` (DEC-A7)."""
    return digest(Domain.BEACON, beacon, preimage)


def beacon_link(preimage: bytes) -> bytes:
    """Return the element of a validator's hash chain that `preimage` opens."""
    return digest(Domain.BEACON_CHAIN, preimage)
