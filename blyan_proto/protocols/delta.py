"""/blyan/delta/1: a learner hands its compressed changes to a primary.
docs/protocols/delta.md"""

from __future__ import annotations

import enum
from typing import Annotated

from blyan_proto.codec import U8, U16, U32, Choice, Size, encode, message
from blyan_proto.constants import MAX_TRAINED_TILES, MIB
from blyan_proto.digest import Domain, digest
from blyan_proto.merkle import EMPTY
from blyan_proto.types import Account, BlobId, BlockId, Hash, PublicKey, Signature

PROTOCOL_ID = "/blyan/delta/1"
MAX_TILE_DELTA_BYTES = 4 * MIB + 4096  # a dense tile in float32
MAX_BUNDLE_BYTES = 64 * MIB
MAX_GROUPS_PER_BUNDLE = 1024
DEADLINE_S = 60.0


@message
class Delta:
    """One learner's change of one group in one round, relative to named base versions."""

    version: U8
    run: BlockId  # the run's block id is its digest (DEC-B7)
    group: U16
    round: U32
    learner: Account
    base: Annotated[tuple[BlobId, ...], Size(1, MAX_TRAINED_TILES)]  # weight roots
    tokens: U32
    tiles: Annotated[
        tuple[Annotated[bytes, Size(1, MAX_TILE_DELTA_BYTES)], ...],
        Size(1, MAX_TRAINED_TILES),
    ]

    @property
    def digest(self) -> bytes:
        return digest(Domain.DELTA, encode(self))


@message
class Entry:
    """What a bundle says about one group: a delta's digest, or that there is none."""

    group: U16
    delta: Hash | None  # none: too few tokens reached the expert (DEC-B13)


@message
class Manifest:
    """The signed part of a bundle; purpose "delta bundle"."""

    run: BlockId
    round: U32
    learner: Account
    entries: Annotated[tuple[Entry, ...], Size(1, MAX_GROUPS_PER_BUNDLE)]
    residual: Hash  # digest of the error feedback that went in (DEC-B12)
    change: Hash  # digest of the uncompressed change
    log: Hash = (
        EMPTY  # Merkle root of the steps behind it (PoDL); EMPTY: no log is kept
    )

    @property
    def digest(self) -> bytes:
        return digest(Domain.MANIFEST, encode(self))


@message
class Bundle:
    """What one learner sends to one primary in one round.

    Without any delta it announces those that its manifest names.
    """

    manifest: Manifest
    signer: PublicKey
    signature: Signature
    deltas: Annotated[tuple[Delta, ...], Size(0, MAX_GROUPS_PER_BUNDLE)]


class Verdict(enum.IntEnum):
    """What became of one entry."""

    TAKEN = 0
    ALREADY_HAD = 1
    STALE = 2  # the base is not the round's base here
    NOT_PRIMARY = 3
    CLOSED = 4  # the update is out already
    REFUSED = 5  # the sender is no learner of the group in this round
    SHAPE = 6  # tiles, codec, setting or length are not the run's, or do not decode
    NOT_FINITE = 7
    TOO_LARGE = 8  # an absurd norm
    TOO_MANY_TOKENS = 9  # more than a round assigns
    COPY = 10  # another learner's delta, announced before
    NOTED = 11  # announced: the delta itself may come
    AGAINST = 12  # the learner pulls against most others, round after round


REFUSALS = frozenset(Verdict(code) for code in range(Verdict.REFUSED, Verdict.NOTED))
REFUSALS |= {Verdict.AGAINST}


@message
class EntryVerdict:
    """The primary's answer for one group."""

    group: U16
    verdict: Verdict


@message
class ReceiptClaim:
    """What a primary signs about a bundle; purpose "delta receipt"."""

    run: BlockId
    round: U32
    verdicts: Annotated[tuple[EntryVerdict, ...], Size(1, MAX_GROUPS_PER_BUNDLE)]
    manifest: Hash


@message
class Receipt:
    """The primary's signed answer to a bundle, entry by entry.

    With it a contributor shows that a delta was taken, and then left out.
    """

    run: BlockId
    round: U32
    verdicts: Annotated[tuple[EntryVerdict, ...], Size(1, MAX_GROUPS_PER_BUNDLE)]
    manifest: Hash  # digest of the manifest: who sent which deltas
    signer: PublicKey
    signature: Signature

    @property
    def claim(self) -> ReceiptClaim:
        """The statement under the signature."""
        return ReceiptClaim(self.run, self.round, self.verdicts, self.manifest)


REQUEST = Choice("delta request", {1: Bundle})
ANSWER = Choice("delta answer", {1: Receipt})
