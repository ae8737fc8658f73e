"""The rows of a state in the database: values, entries and hashes of buckets.

Every key has its value (in key order) and an entry in its bucket (path, digest of the
value, key); every bucket with entries has its hash and their number. What changes keys
changes all three in one batch, so the hashes need not be computed again on opening.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice

from blyan_proto.state import (
    BUCKETS,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    bucket_hash,
    bucket_of,
    path_of,
    value_digest,
)
from blyand.store.db import Snapshot, Store
from blyand.store.schema import AREAS, META_AREA, Area, Batch, u16
from blyand.store.tree import EMPTY, Tree

BUCKETS_AT_ONCE = 512  # read in one turn
KEYS_IN_MEMORY = 2_000_000  # entries that a recomputation holds: 200 MB
ROWS_AT_ONCE = 10_000  # in one batch, where a whole area is written or removed

Changes = Mapping[bytes, bytes | None]  # None deletes the key


def area_of(view: Store | Snapshot) -> Area:
    """Return the area of the executed state."""
    return AREAS[int.from_bytes(view.get(META_AREA) or b"", "big")]


@dataclass
class Touched:
    """What changes of keys do to their buckets."""

    hashes: dict[int, bytes] = field(default_factory=dict)
    writes: Batch = field(default_factory=list)  # all rows, the values' included
    added: int = 0  # keys more than before


def touch(view: Snapshot, area: Area, changes: Changes) -> Touched:
    """Return what `changes` of the state in `view` do: reads the touched buckets only."""
    by_bucket: dict[int, list[tuple[bytes, bytes, bytes | None]]] = {}
    for key, value in changes.items():
        if not 0 < len(key) <= MAX_KEY_BYTES or len(value or b"") > MAX_VALUE_BYTES:
            raise ValueError(f"a key of {len(key)} bytes or its value is out of bounds")
        path = path_of(key)
        by_bucket.setdefault(bucket_of(path), []).append((path, key, value))
    done, indexes = Touched(), sorted(by_bucket)
    for at in range(0, len(indexes), BUCKETS_AT_ONCE):
        some = indexes[at : at + BUCKETS_AT_ONCE]
        rows = view.under([area.entry + u16(index) for index in some])
        for index, found in zip(some, rows):
            _touch_one(area, index, dict(found), by_bucket[index], done)
    return done


def _touch_one(
    area: Area,
    index: int,
    entries: dict[bytes, bytes],  # by row, as in the database
    changes: list[tuple[bytes, bytes, bytes | None]],
    done: Touched,
) -> None:
    before = len(entries)
    for path, key, value in changes:
        row = area.entry + path
        if value is None:
            if entries.pop(row, None) is not None:
                done.writes += [(row, None), (area.value + key, None)]
            continue
        entry = value_digest(value) + key
        if entries.get(row) != entry:
            entries[row] = entry
            done.writes += [(row, entry), (area.value + key, value)]
    done.added += len(entries) - before
    hashed = bucket_hash([row[1:] + entries[row][:32] for row in sorted(entries)])
    done.hashes[index] = hashed
    kept = hashed + len(entries).to_bytes(4, "big") if entries else None
    done.writes.append((area.bucket + u16(index), kept))


def load(view: Snapshot, area: Area) -> tuple[Tree, int]:
    """Return the tree and the number of keys as the hashes of buckets say."""
    return tree_of_rows(view.scan(area.bucket))


def tree_of_rows(rows: Iterable[tuple[bytes, bytes]]) -> tuple[Tree, int]:
    """Return the tree and the number of keys of these rows of buckets."""
    hashes: dict[int, bytes] = {}
    count = 0
    for row, kept in rows:
        hashes[bucket_of(row[1:])] = kept[:32]
        count += int.from_bytes(kept[32:], "big")
    return EMPTY.with_buckets(hashes), count


def tree_of(view: Snapshot, area: Area) -> Tree:
    """Return the tree that the values themselves give; the other rows are not read.

    Takes some 4 s and 100 MB for a million keys; of many more, several passes.
    """
    passes = 1 + load(view, area)[1] // KEYS_IN_MEMORY
    tree = EMPTY
    for number in range(passes):
        first, end = (BUCKETS * n // passes for n in (number, number + 1))
        pairs = ((row[1:], value) for row, value in view.scan(area.value))
        tree = tree.with_buckets(hashes_of(pairs, first, end))
    return tree


def hashes_of(
    pairs: Iterable[tuple[bytes, bytes]], first: int = 0, end: int = BUCKETS
) -> dict[int, bytes]:
    """Return the hashes of those buckets from `first` to `end` that pairs fall into."""
    entries: dict[int, bytearray] = {}
    for key, value in pairs:
        path = path_of(key)
        index = bucket_of(path)
        if first <= index < end:
            entry = path + value_digest(value)
            entries.setdefault(index, bytearray()).extend(entry)
    return {
        index: bucket_hash(
            sorted(bytes(many[at : at + 64]) for at in range(0, len(many), 64))
        )
        for index, many in entries.items()
    }


def entries_agree(store: Store, root: bytes) -> bool:
    """True if the entries give a root, name their keys, and have the hashes of buckets."""
    view = store.snapshot()
    area = area_of(view)
    rows = bucket_rows(view, area)
    return (
        tree_of_rows(rows)[0].root == root
        and rows == list(view.scan(area.bucket))
        and all(row[1:] == path_of(entry[32:]) for row, entry in view.scan(area.entry))
    )


def write_entries(store: Store, area: Area) -> None:
    """Write the entries and hashes of buckets anew, from the values. Durable on return."""
    remove(store, (area.entry, area.bucket))
    batch: Batch = []
    for row, value in store.scan(area.value):
        key = row[1:]
        batch.append((area.entry + path_of(key), value_digest(value) + key))
        if len(batch) == ROWS_AT_ONCE:
            store.write_batch(batch, sync=False)
            batch = []
    store.write_batch(batch, sync=True)
    store.write_batch([*bucket_rows(store.snapshot(), area)], sync=True)


def bucket_rows(
    view: Snapshot, area: Area, prefix: bytes = b""
) -> list[tuple[bytes, bytes]]:
    """Return the rows of buckets that the entries give; of paths with a prefix only."""
    rows: list[tuple[bytes, bytes]] = []
    for index, some in groupby(
        view.scan(area.entry + prefix), lambda row: bucket_of(row[0][1:])
    ):
        entries = [row[1:] + entry[:32] for row, entry in some]
        kept = bucket_hash(entries) + len(entries).to_bytes(4, "big")
        rows.append((area.bucket + u16(index), kept))
    return rows


def remove(store: Store, prefixes: Iterable[bytes]) -> None:
    """Remove everything under the prefixes. Durable on return."""
    for prefix in prefixes:
        rows = (row for row, _ in store.scan(prefix))
        some = [(row, None) for row in islice(rows, ROWS_AT_ONCE)]
        while some:
            rest = [(row, None) for row in islice(rows, ROWS_AT_ONCE)]
            store.write_batch([*some], sync=not rest)
            some = rest
