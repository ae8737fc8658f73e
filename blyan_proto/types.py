"""The distinct values of the protocol, with their bounds in the type."""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import Size

Hash = Annotated[bytes, Size(32, 32)]  # a blake3-256 digest
MaybeHash = Hash | None
BlockId = Hash  # digest of a header
CheckpointId = Hash
BlobId = Hash  # root of a TBLOCK file
Account = Annotated[bytes, Size(20, 20)]  # address of an account's first key (DEC-A10)
PublicKey = Annotated[bytes, Size(33, 33)]  # compressed secp256k1 point
Signature = Annotated[bytes, Size(64, 64)]  # compact r || s, low-S
Name = Annotated[str, Size(1, 128)]  # a subject: group, dataset or run name
TEXT_BYTES = 512
Text = Annotated[str, Size(0, TEXT_BYTES)]
OnceKey = Annotated[bytes, Size(0, 32)]  # of a payment that must happen once; b"": none
Bitmap = Annotated[bytes, Size(0, 8192)]  # bit i (LSB first) = group i of the layout


class Chain(enum.IntEnum):
    """The four chains, in their order inside a checkpoint: A, D, B, C (DEC-A3)."""

    META = 0  # A: model, runs, adoptions, placement parameters
    PARAMETERS = 1  # B: weights, tile updates, snapshots
    LEDGER = 2  # C: registrations, heartbeats, transfers, evidence
    DATASETS = 3  # D: datasets, votes

    @property
    def letter(self) -> str:
        return "ABCD"[self]


CHAIN_ORDER = (Chain.META, Chain.DATASETS, Chain.PARAMETERS, Chain.LEDGER)


class Role(enum.IntFlag):
    """What a node offers to do; a bit field in hello and registration."""

    LEARN = 1
    SERVE = 2
    VALIDATE = 4
    ARCHIVE = 8


def bitmap(groups: frozenset[int] | set[int], count: int) -> bytes:
    """Return the bitmap of `groups` over a layout of `count` groups."""
    bits = bytearray((count + 7) // 8)
    for group in groups:
        bits[group // 8] |= 1 << (group % 8)
    return bytes(bits)


def members(bits: bytes) -> frozenset[int]:
    """Return the group indices that are set in a bitmap."""
    return frozenset(
        8 * place + bit
        for place, byte in enumerate(bits)
        for bit in range(8)
        if byte >> bit & 1
    )
