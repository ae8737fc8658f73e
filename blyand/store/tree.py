"""The hashes over the buckets of a state: 65,536 leaves, one root, touched paths only.

A tree never changes: one with other leaves shares with it what is the same, in pieces of
256 leaves. So a root can be tried, taken over, or kept by whoever serves an old state,
without a copy of 4 MiB. The pieces are the chunks of blyan_proto/state.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from blyan_proto.digest import node_digest
from blyan_proto.state import CHUNKS, EMPTY_BUCKET, StateManifest

WIDTH = 256  # leaves of a piece
HASH = 32

Piece = bytes  # a binary heap of hashes: the root at 1, children of i at 2i, 2i+1


class Tree:
    """The hashes of a state's buckets and all above them."""

    def __init__(self, pieces: tuple[Piece, ...], top: Piece) -> None:
        self._pieces = pieces
        self._top = top

    @property
    def root(self) -> bytes:
        """The state root."""
        return _at(self._top, 1)

    @property
    def manifest(self) -> StateManifest:
        """The 256 hashes at depth 8."""
        return StateManifest(tuple(_at(piece, 1) for piece in self._pieces))

    def bucket(self, index: int) -> bytes:
        """Return the hash of a bucket."""
        return _at(self._pieces[index // WIDTH], WIDTH + index % WIDTH)

    def siblings(self, index: int) -> tuple[bytes, ...]:
        """Return the 16 hashes that lead from a bucket up to the root."""
        chunk, place = divmod(index, WIDTH)
        return (*_siblings(self._pieces[chunk], place), *_siblings(self._top, chunk))

    def with_buckets(self, hashes: Mapping[int, bytes]) -> Tree:
        """Return the tree in which these buckets have other hashes."""
        touched: dict[int, dict[int, bytes]] = {}
        for index, hashed in hashes.items():
            touched.setdefault(index // WIDTH, {})[index % WIDTH] = hashed
        pieces = list(self._pieces)
        for chunk, leaves in touched.items():
            pieces[chunk] = _with_leaves(pieces[chunk], leaves)
        roots = {chunk: _at(pieces[chunk], 1) for chunk in touched}
        return Tree(tuple(pieces), _with_leaves(self._top, roots))


def _at(piece: Piece, place: int) -> bytes:
    return piece[place * HASH : place * HASH + HASH]


def _siblings(piece: Piece, leaf: int) -> list[bytes]:
    place, found = WIDTH + leaf, []
    while place > 1:
        found.append(_at(piece, place ^ 1))
        place //= 2
    return found


def _with_leaves(piece: Piece, leaves: Mapping[int, bytes]) -> Piece:
    changed = bytearray(piece)
    level = set()
    for leaf, hashed in leaves.items():
        place = WIDTH + leaf
        changed[place * HASH : place * HASH + HASH] = hashed
        level.add(place // 2)
    while level and 0 not in level:
        for place in level:
            pair = changed[place * 2 * HASH : (place + 1) * 2 * HASH]
            changed[place * HASH : place * HASH + HASH] = node_digest(pair)
        level = {place // 2 for place in level}
    return bytes(changed)


def _uniform(leaf: bytes) -> Piece:
    levels = [leaf * WIDTH]
    while len(levels[-1]) > HASH:
        half = len(levels[-1]) // HASH // 2
        levels.append(node_digest(levels[-1][: 2 * HASH]) * half)
    return bytes(HASH) + b"".join(reversed(levels))


_EMPTY_PIECE = _uniform(EMPTY_BUCKET)
EMPTY = Tree((_EMPTY_PIECE,) * CHUNKS, _uniform(_at(_EMPTY_PIECE, 1)))
