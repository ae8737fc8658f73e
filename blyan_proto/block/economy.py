"""Payloads of chain C: who takes part, who is alive, who pays whom, who cheated.
docs/block-format.md section 6."""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.block.header import SignedHeader
from blyan_proto.block.model import TileRoots
from blyan_proto.codec import U8, U16, U32, U64, Size, message
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.types import (
    Account,
    Bitmap,
    BlockId,
    Hash,
    OnceKey,
    PublicKey,
    Signature,
    Text,
)


@message
class Hardware:
    """What a node says it runs on. A claim, never a proof (HZ-19)."""

    device: Annotated[str, Size(0, 64)]  # "cpu", "cuda: NVIDIA H100"
    memory_bytes: U64  # of the device that holds experts
    cores: U16


@message
class Registration:
    """A node takes part: key, roles, region, hardware claim, bond, beacon commitment."""

    version: U8
    key: PublicKey  # the account's first key
    roles: U8  # blyan_proto.types.Role bits
    region: Annotated[str, Size(0, 32)]
    hardware: Hardware
    bond_micro: U64  # micro-BLY locked
    beacon_tail: Hash | None  # end of the validator's hash chain (DEC-A7)


@message
class Heartbeat:
    """A node is alive and holds these groups of a model (DEC-A8)."""

    version: U8
    model: BlockId | None
    held: Bitmap  # over the model's layout; empty without a model
    load_ppm: U32

    def __post_init__(self) -> None:
        if self.model is None and self.held:
            raise ValueError("held groups of no model")


@message
class Transfer:
    """Micro-BLY from the author's account to another."""

    version: U8
    to: Account
    amount_micro: U64
    fee_micro: U64  # 1 % is burnt, the rest goes to the validators' pool
    memo: Text
    key: OnceKey = b""


@message
class Bond:
    """Lock more of the author's balance, or begin to release some."""

    version: U8
    lock_micro: U64
    release_micro: U64


@message
class RotationStatement:
    """What the new key signs; purpose "key rotation"."""

    version: U8
    account: Account
    new_key: PublicKey


@message
class KeyRotation:
    """The account moves to a new key; the old one signs the block, the new one the proof."""

    version: U8
    new_key: PublicKey
    proof: Signature  # over the RotationStatement


class Offence(enum.IntEnum):
    """What is punished (DEC-A13). Evidence shows the first four."""

    DOUBLE_VOTE = 1
    DOUBLE_PROPOSAL = 2
    DOUBLE_HEAD = 3
    INVALID_BLOCK = 4
    FALSE_ROOT = 5  # a dispute shows it (DEC-A5)
    FALSE_EVIDENCE = 6  # evidence that proves nothing
    DOWNTIME = 7  # the missed precommits show it
    CENSORSHIP = 8  # validators say so, by a vote


# Offence -> how many signed headers and how many statements prove it. A statement is a
# Vote, a SignedProposal, a SignedClaim, or what shows a block to be invalid: its payload
# or the header of a parent. All in canonical bytes.
PROOF = {
    Offence.DOUBLE_VOTE: (0, 2),
    Offence.DOUBLE_PROPOSAL: (0, 2),
    Offence.DOUBLE_HEAD: (0, 2),
    Offence.INVALID_BLOCK: (1, 1),
}


@message
class Evidence:
    """Self-contained proof of an offence: what the offender signed."""

    version: U8
    offence: Offence
    offender: Account
    headers: Annotated[tuple[SignedHeader, ...], Size(0, 2)]
    statements: Annotated[
        tuple[Annotated[bytes, Size(0, MAX_PAYLOAD_BYTES)], ...], Size(0, 2)
    ]

    def __post_init__(self) -> None:
        if (len(self.headers), len(self.statements)) != PROOF.get(self.offence):
            raise ValueError(f"not the proof of a {self.offence.name.lower()}")


MAX_LATENCIES = 64  # peers in one report


class LatencyClass(enum.IntEnum):
    """A round trip, quantised: below 10, 30, 80, 200 ms, or longer."""

    LOCAL = 0
    NEAR = 1
    REGIONAL = 2
    FAR = 3
    DISTANT = 4


@message
class Latency:
    """How far one node is from the author of the report."""

    node: Account
    latency: LatencyClass


@message
class LatencyReport:
    """The round trips that a node measured to others (DEC-A8)."""

    version: U8
    latencies: Annotated[tuple[Latency, ...], Size(1, MAX_LATENCIES)]

    def __post_init__(self) -> None:
        nodes = [one.node for one in self.latencies]
        if any(left >= right for left, right in zip(nodes, nodes[1:])):
            raise ValueError("latencies are not ascending by node")


@message
class Censure:
    """A validator votes that another one leaves out valid blocks (SLASH-04)."""

    version: U8
    offender: Account
    reason: Text  # what was left out, and when; for people


@message
class Dispute:
    """A holder computed another result than an update claims (DEC-A5)."""

    version: U8
    run: BlockId
    group: U16
    round: U32
    update: BlockId  # the group's update of that round
    tile: U16
    computed: TileRoots


@message
class DisputeVerdict:
    """A validator recomputed a disputed update: its vote, which counts with its weight."""

    version: U8
    update: BlockId
    is_right: bool  # the update, not the dispute
