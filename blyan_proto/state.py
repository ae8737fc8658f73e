"""The state tree: from keys to buckets, from buckets to one root; proofs and pieces of it.

A key's path is its digest; the first 16 bits of the path name its bucket. A bucket's
hash covers its entries (path, digest of the value) by path, and the state root is the
Merkle root over all 65,536 buckets. A chunk is everything under one first byte of the
path: the 256 hashes at depth 8 say what each must be. docs/consensus.md, "State".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from blyan_proto import merkle
from blyan_proto.codec import U8, Size, message
from blyan_proto.constants import KIB, MIB
from blyan_proto.digest import Domain, digest, digest_alike
from blyan_proto.errors import BadProof
from blyan_proto.types import Hash

BUCKETS = 65_536
DEPTH = 16  # hashes from a bucket up to the root
CHUNKS = 256  # a chunk is 256 neighbouring buckets

MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 16 * MIB  # a schedule of 1024 seats with the longest bitmaps has 9
PART_BYTES = MIB  # keys and values in a part, unless one pair alone has more
MAX_PART_BYTES = MAX_VALUE_BYTES + PART_BYTES  # of an encoded part
MAX_PAIRS = 16_384  # in a part
MAX_MANIFEST_BYTES = 10 * KIB

# A light client takes a proof below a megabyte (SYNC-06): 256 times the entries that a
# bucket has in a state of a million keys, and no value of more than half a megabyte.
MAX_PROOF_ENTRIES = 4096
MAX_PROVED_BYTES = 384 * KIB

Entry = Annotated[bytes, Size(64, 64)]  # path, digest of the value


def path_of(key: bytes) -> bytes:
    """Return a key's place in the tree: 32 bytes."""
    return digest(Domain.STATE, key)


def bucket_of(path: bytes) -> int:
    """Return the bucket of a path, 0…65,535."""
    return path[0] << 8 | path[1]


def value_digest(value: bytes) -> bytes:
    """Return what an entry holds of a value: 32 bytes."""
    return digest(Domain.VALUE, value)


def bucket_hash(entries: Sequence[bytes]) -> bytes:
    """Return the hash of a bucket from its entries (64 bytes each), ascending."""
    return digest_alike(Domain.BUCKET, 64, entries)


EMPTY_BUCKET = bucket_hash(())


@message
class StateProof:
    """What stands under one key in a state, or that nothing does."""

    entries: Annotated[tuple[Entry, ...], Size(0, MAX_PROOF_ENTRIES)]  # of the bucket
    siblings: Annotated[tuple[Hash, ...], Size(DEPTH, DEPTH)]  # from the bucket upwards
    value: Annotated[bytes, Size(0, MAX_PROVED_BYTES)] | None  # none: the key is absent


def verify_state(root: bytes, key: bytes, proof: StateProof) -> bytes | None:
    """Return the value of `key` in the state with that root, None when it is absent.

    BadProof when the proof shows neither.
    """
    path = path_of(key)
    paths = [entry[:32] for entry in proof.entries]
    if paths != sorted(set(paths)):
        raise BadProof("the entries of the bucket are not ascending and distinct")
    if any(bucket_of(other) != bucket_of(path) for other in paths):
        raise BadProof("an entry does not belong into the bucket of the key")
    top = bucket_hash(proof.entries)
    merkle.verify(top, bucket_of(path), BUCKETS, proof.siblings, root)
    if path not in paths:
        if proof.value is not None:
            raise BadProof("a value is shown for a key that is absent")
        return None
    if proof.value is None:
        raise BadProof("the value of the key is not shown")
    if proof.entries[paths.index(path)][32:] != value_digest(proof.value):
        raise BadProof("the value shown is not the one of the key")
    return proof.value


@message
class StateManifest:
    """The hash of each chunk of a state; their Merkle root is the state root."""

    hashes: Annotated[tuple[Hash, ...], Size(CHUNKS, CHUNKS)]

    @property
    def root(self) -> bytes:
        return merkle.root(self.hashes)


@message
class StatePair:
    """A key of the executed state and its value."""

    key: Annotated[bytes, Size(1, MAX_KEY_BYTES)]
    value: Annotated[bytes, Size(0, MAX_VALUE_BYTES)]


@message
class StatePart:
    """Neighbouring pairs of one chunk, ascending by path."""

    chunk: U8
    after: Hash | None  # path of the pair before the first; none: the chunk's start
    pairs: Annotated[tuple[StatePair, ...], Size(0, MAX_PAIRS)]
    is_last: bool  # the chunk ends with them
