"""An executed state that no longer changes: read, proved, and handed out in pieces.

It is a snapshot of the database with the tree over it, so that it costs nothing to have,
and lives beside newer ones for as long as somebody holds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from blyan_proto.state import (
    MAX_PAIRS,
    MAX_PROOF_ENTRIES,
    MAX_PROVED_BYTES,
    PART_BYTES,
    StateManifest,
    StatePair,
    StatePart,
    StateProof,
    bucket_of,
    path_of,
)
from blyand.errors import NotHere
from blyand.store.buckets import area_of, load
from blyand.store.db import Snapshot, Store, Superseded
from blyand.store.schema import META_EXECUTED, Area, u16
from blyand.store.tree import Tree

KEYS_AT_ONCE = 16  # read in one turn; few values have more than a hundred bytes


class Frozen:
    """The state after one checkpoint. Safe to use from several threads."""

    def __init__(self, view: Snapshot, area: Area, tree: Tree, count: int) -> None:
        self.view, self.area = view, area
        self.tree, self.count = tree, count

    @classmethod
    def of(cls, store: Store) -> Frozen:
        """Return the executed state as it stands in `store`; its hashes are trusted."""
        view = store.snapshot(META_EXECUTED)
        area = area_of(view)
        return cls(view, area, *load(view, area))

    @property
    def height(self) -> int:
        """Height of the checkpoint that it is after, 0 before the first."""
        return int.from_bytes(self.view.get(META_EXECUTED) or b"", "big")

    @property
    def root(self) -> bytes:
        """The state root, 32 bytes."""
        return self.tree.root

    @property
    def manifest(self) -> StateManifest:
        """What each chunk must hash to."""
        return self.tree.manifest

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when absent."""
        return self.view.get(self.area.value + key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the pairs under `prefix` in key order."""
        pairs = self.view.scan(self.area.value + prefix)
        return ((row[1:], value) for row, value in pairs)

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of what stands under `key`. Blocking.

        NotHere when the value, or the bucket, is larger than a proof may be.
        """
        path = path_of(key)
        bucket = bucket_of(path)
        rows = self.view.under([self.area.entry + u16(bucket)])[0]
        value = self.get(key)
        if len(value or b"") > MAX_PROVED_BYTES or len(rows) > MAX_PROOF_ENTRIES:
            raise NotHere("the value, or its bucket, is too large for a proof")
        entries = tuple(row[1:] + entry[:32] for row, entry in rows)
        return StateProof(entries, self.tree.siblings(bucket), value)

    def part(
        self, chunk: int, after: bytes | None, limit: int = PART_BYTES
    ) -> StatePart:
        """Return the pairs of a chunk behind the path `after`, None for its start.

        As many as fit into `limit` bytes of keys and values, at least one. Blocking.
        NotHere when this state is gone: the database was opened anew after a full disk.
        """
        start = bytes([chunk]) if after is None else after + b"\0"
        pairs: list[StatePair] = []
        room = limit
        try:
            rows = self.view.scan(self.area.entry + start[:1], start=start[1:])
            while keys := [entry[32:] for _, entry in islice(rows, KEYS_AT_ONCE)]:
                values = self.view.many([self.area.value + key for key in keys])
                for key, value in zip(keys, values):
                    assert value is not None
                    room -= len(key) + len(value)
                    if pairs and (room < 0 or len(pairs) == MAX_PAIRS):
                        return StatePart(chunk, after, tuple(pairs), False)
                    pairs.append(StatePair(key, value))
        except Superseded as error:
            raise NotHere(
                "that state is no longer kept; ask for a newer one"
            ) from error
        return StatePart(chunk, after, tuple(pairs), True)
