"""Binary Merkle tree over 32-byte leaves; leaf and node hashes live in other domains.

Shape: the left subtree of n > 1 leaves holds the largest power of two below n (as in
RFC 6962), so a proof's length is computed from (index, count), never read.
"""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.digest import Domain, digest
from blyan_proto.errors import BadProof

EMPTY = digest(Domain.EMPTY)


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of `leaves` (each 32 bytes); EMPTY for none."""
    if not leaves:
        return EMPTY
    return _levels(leaves)[-1][0]


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Return the tree from the leaves up; pairing by levels gives RFC 6962's shape."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        level = levels[-1]
        paired = [
            digest(Domain.NODE, level[i], level[i + 1])
            for i in range(0, len(level) - 1, 2)
        ]
        levels.append(paired + level[len(level) - len(level) % 2 :])
    return levels


def prove(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the sibling hashes from leaf `index` up to the root."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*prove(leaves[:split], index), root(leaves[split:]))
    return (*prove(leaves[split:], index - split), root(leaves[:split]))


def prove_all(
    leaves: Sequence[bytes], indices: Sequence[int]
) -> list[tuple[bytes, ...]]:
    """Return `prove` of each of `indices`; every node of the tree is made once."""
    levels = _levels(leaves)
    proofs = []
    for index in indices:
        if not 0 <= index < len(leaves):
            raise ValueError(f"leaf {index} of {len(leaves)}")
        proof = []
        for level in levels[:-1]:
            if index ^ 1 < len(level):  # else it goes up alone
                proof.append(level[index ^ 1])
            index //= 2
        proofs.append(tuple(proof))
    return proofs


def verify(
    leaf: bytes, index: int, count: int, proof: Sequence[bytes], top: bytes
) -> None:
    """Raise BadProof unless `leaf` is number `index` of `count` under the root `top`."""
    if not 0 <= index < count:
        raise BadProof(f"leaf {index} of {count}")
    if len(proof) != proof_length(index, count):
        raise BadProof(f"{len(proof)} hashes for leaf {index} of {count}")
    if _climb(leaf, index, count, proof) != top:
        raise BadProof("content does not match its root")


def proof_length(index: int, count: int) -> int:
    """Return how many hashes prove leaf `index` of `count`."""
    length = 0
    while count > 1:
        split = _split(count)
        index, count = (
            (index, split) if index < split else (index - split, count - split)
        )
        length += 1
    return length


def _climb(leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bytes:
    if count == 1:
        return leaf
    split = _split(count)
    if index < split:
        below = _climb(leaf, index, split, proof[:-1])
        return digest(Domain.NODE, below, proof[-1])
    below = _climb(leaf, index - split, count - split, proof[:-1])
    return digest(Domain.NODE, proof[-1], below)
