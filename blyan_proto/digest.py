"""blake3-256 with a domain per purpose, so that no digest can stand for another's."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from blake3 import blake3


class Domain(enum.Enum):
    """Every purpose for which Blyan hashes; the value is blake3's key-derivation context."""

    GENESIS = "blyan 1 genesis"
    BLOCK = "blyan 1 block header"
    PAYLOAD = "blyan 1 block payload"
    CHECKPOINT = "blyan 1 checkpoint"
    LEAF = "blyan 1 merkle leaf"
    NODE = "blyan 1 merkle node"
    EMPTY = "blyan 1 merkle empty"
    TBLOCK = "blyan 1 tblock root"
    DELTA = "blyan 1 delta"
    MANIFEST = "blyan 1 manifest"
    RESIDUAL = "blyan 1 residual"
    CHANGE = "blyan 1 change"
    CLAIM = "blyan 1 update claim"
    GROUP = "blyan 1 group root"
    SPAN = "blyan 1 versions of a span"
    OFFENCE = "blyan 1 offence"
    MODEL = "blyan 1 model heads"
    STATE = "blyan 1 state key"
    VALUE = "blyan 1 state value"
    BUCKET = "blyan 1 state bucket"
    SET = "blyan 1 validator set"
    BEACON = "blyan 1 beacon"
    BEACON_CHAIN = "blyan 1 beacon chain"
    PLACEMENT = "blyan 1 placement"
    ELECTION = "blyan 1 election"
    EDGE = "blyan 1 edge"
    BATCHES = "blyan 1 batches"
    SEED = "blyan 1 seed"
    WORK = "blyan 1 work"
    RANGE = "blyan 1 range of blocks"
    PROVIDER = "blyan 1 provider"
    ONCE = "blyan 1 once"
    QUOTE = "blyan 1 quote"
    SIGNATURE = "blyan 1 signature"
    SEAL = "blyan 1 seal of a score"


# A copy costs half of beginning in a context anew. (By value: members hash slowly.)
_BEGUN = {domain.value: blake3(derive_key_context=domain.value) for domain in Domain}
_NODE = _BEGUN[Domain.NODE.value]
_HASH_BYTES = (32).to_bytes(8, "little")
_COPIED_BYTES = 1024  # parts up to here are joined with their length: one call less


def digest(domain: Domain, *parts: bytes) -> bytes:
    """Return 32 bytes of blake3 over `parts`, each preceded by its length (u64 LE)."""
    hasher = _BEGUN[domain._value_].copy()
    for part in parts:
        size = len(part).to_bytes(8, "little")
        if len(part) <= _COPIED_BYTES:
            hasher.update(b"".join((size, part)))
        else:
            hasher.update(size)
            hasher.update(part)
    return hasher.digest()


def begun(domain: Domain, size: int, head: bytes) -> blake3:
    """Return a hasher of one part of `size` bytes, of which `head` is already in it.

    With the rest it gives what `digest` gives for the whole part.
    """
    hasher = blake3(derive_key_context=domain.value)
    hasher.update(size.to_bytes(8, "little"))
    hasher.update(head)
    return hasher


def digest_alike(domain: Domain, size: int, parts: Sequence[bytes]) -> bytes:
    """Return `digest(domain, *parts)` where all parts have `size` bytes; twice as fast."""
    hasher = _BEGUN[domain._value_].copy()
    if parts:
        length = size.to_bytes(8, "little")
        hasher.update(length + length.join(parts))
    return hasher.digest()


def node_digest(pair: bytes | bytearray) -> bytes:
    """Return `digest(NODE, left, right)` of 64 bytes: what a tree is made of, fast."""
    hasher = _NODE.copy()
    hasher.update(b"".join((_HASH_BYTES, pair[:32], _HASH_BYTES, pair[32:])))
    return hasher.digest()


def leaf_digest(chunk: bytes | memoryview) -> bytes:
    """Return the Merkle leaf of one chunk (no length prefix: the leaf count binds it)."""
    return blake3(chunk, derive_key_context=Domain.LEAF.value).digest()
