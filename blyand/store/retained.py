"""The books of retention: who names which blob, what was dropped, what is to go.

Strategy. A payload goes in one synced batch together with its names, the note that it was
dropped, and a mark on every blob that it named (doomed). A doomed blob's file goes later,
if no payload names it by then. So a kill at any instant leaves either the payload with
all its blobs, or marks that the next start works off. Which payloads were judged is a
height, so that no start walks the chain.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice

from blyan_proto.block.header import SignedHeader
from blyan_proto.block.payload import decode_payload
from blyan_proto.codec import encode
from blyand.rules.chain.retention import NAMING, Ordered, Place, blobs_named
from blyand.store.db import Store
from blyand.store.schema import (
    DOOMED,
    DROPPED,
    GONE,
    GONE_SLOT,
    HEADER,
    KEPT,
    META_GONE,
    META_JUDGED,
    META_NAMED,
    NAMED,
    PAYLOAD,
    Batch,
    Gone,
    decode_own,
    kept_key,
    u64,
)

REMEMBERED = 1 << 18  # removed blobs that are known as pruned; older ones are absent
MAX_HEADER_BYTES = 4096
GONE_BYTES = 64


def naming(block: bytes, kind: int, payload: bytes) -> Batch:
    """Return the writes that say which blobs a block's payload names."""
    return [(NAMED + root + block, b"") for root in _roots(kind, payload)]


def unnaming(block: bytes, kind: int, payload: bytes) -> Batch:
    """Return the writes for a payload that goes: its names go, its blobs are doomed."""
    writes: Batch = []
    for root in _roots(kind, payload):
        writes.append((NAMED + root + block, None))
        writes.append((DOOMED + root, b""))
    return writes


def dropping(block: bytes, kind: int, payload: bytes, now_ms: int) -> Batch:
    """Return the writes that drop a payload at a chain time; the header stays."""
    return [
        (PAYLOAD + block, None),
        (DROPPED + block, u64(now_ms)),
        *unnaming(block, kind, payload),
    ]


def _roots(kind: int, payload: bytes) -> set[bytes]:
    if kind not in NAMING:
        return set()  # without decoding it
    return set(blobs_named(decode_payload(kind, payload)))


class Retained:
    """What this node keeps and kept. Blocking; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._removing = threading.Lock()  # of the places in the ring

    # How far retention is

    @property
    def judged(self) -> int:
        """Height of the checkpoint up to which every block was judged."""
        raw = self._store.get(META_JUDGED)
        return 0 if raw is None else int.from_bytes(raw, "big")

    @property
    def knows_names(self) -> bool:
        """True once every payload here is in the index of names."""
        return self._store.get(META_NAMED) is not None

    def index_names(self, after: bytes, count: int) -> bytes | None:
        """Index the names of the next `count` payloads; None when all are done.

        For a store of an earlier version, or a repaired one. Returns where to go on.
        """
        some = list(islice(self._store.scan(PAYLOAD, start=after), count))
        writes: Batch = []
        for key, payload in some:
            raw = self._store.get(HEADER + key[1:])
            if raw is not None:
                header = decode_own(SignedHeader, raw, MAX_HEADER_BYTES).header
                writes += naming(key[1:], header.kind, payload)
        if len(some) < count:
            self._store.write_batch([*writes, (META_NAMED, b"\x01")], sync=True)
            return None
        self._store.write_batch(writes, sync=False)
        return some[-1][0][1:] + b"\0"

    def judge(self, height: int, dropped: Batch, needed: Iterable[Ordered]) -> None:
        """Note that all blocks up to `height` were judged, durable on return.

        `dropped` are the writes of `dropping`; `needed` are those that make versions of
        groups and have to stay for now.
        """
        writes: Batch = list(dropped)
        for block in needed:
            content = block.content
            key = kept_key(content.model, content.group, *block.place)
            writes.append((key, block.id))
        writes.append((META_JUDGED, u64(height)))
        self._store.write_batch(writes, sync=True)

    def go_back_to(self, height: int) -> None:
        """Judge again from there on: execution began anew (DEC-D4)."""
        self._store.write_batch([(META_JUDGED, u64(height))], sync=True)

    # Payloads

    def groups(self) -> Iterator[tuple[bytes, int]]:
        """Iterate (model, group) of the groups that keep blocks past their window."""
        at: bytes | None = b""
        while at is not None:
            first = next(iter(self._store.scan(KEPT, start=at)), None)
            at = None
            if first is not None:
                model, group = first[0][1:33], int.from_bytes(first[0][33:35], "big")
                yield model, group
                at = first[0][1:35] + b"\xff" * 10

    def kept(self, model: bytes, group: int) -> Iterator[tuple[bytes, Place, bytes]]:
        """Iterate (key, place, block id) of a group's kept blocks in their order."""
        for key, block in self._store.scan(kept_key(model, group)[:-10]):
            height = int.from_bytes(key[-10:-2], "big")
            yield key, (height, int.from_bytes(key[-2:], "big")), block

    def write(self, writes: Batch) -> None:
        """Write, durable on return."""
        self._store.write_batch(writes, sync=True)

    # Blobs

    def is_named(self, root: bytes) -> bool:
        """True while a payload that is here names the blob."""
        return next(iter(self._store.scan(NAMED + root)), None) is not None

    def names(self, after: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return at most `count` (root, block) above `after`, which is one of both."""
        found = self._store.scan(NAMED, start=after)
        return [(key[1:33], key[33:]) for key, _ in islice(found, count)]

    def namers(self, root: bytes) -> list[bytes]:
        """Return some of the blocks whose payloads name the blob, at most 64."""
        return [key[33:] for key, _ in islice(self._store.scan(NAMED + root), 64)]

    def doomed(self, after: bytes, count: int) -> list[bytes]:
        """Return at most `count` roots that are marked to go, above `after`."""
        found = self._store.scan(DOOMED, start=after)
        return [key[1:] for key, _ in islice(found, count)]

    def doom(self, roots: Iterable[bytes]) -> None:
        """Mark blobs to go unless a payload names them, durable on return."""
        self._store.write_batch([(DOOMED + root, b"") for root in roots], sync=True)

    def spare(self, roots: Iterable[bytes]) -> None:
        """Take the mark off blobs that are named again."""
        self._store.write_batch([(DOOMED + root, None) for root in roots], sync=False)

    def removed(self, roots: Iterable[bytes], now_ms: int) -> None:
        """Note that blobs are gone, so that they are known as pruned."""
        with self._removing:
            self._note_removed(roots, now_ms)

    def _note_removed(self, roots: Iterable[bytes], now_ms: int) -> None:
        raw = self._store.get(META_GONE)
        count = 0 if raw is None else int.from_bytes(raw, "big")
        writes: Batch = []
        for root in roots:
            slot = count % REMEMBERED
            place = GONE_SLOT + slot.to_bytes(4, "big")
            before = self._store.get(place)
            noted = self._gone(before) if before is not None else None
            if before is not None and noted is not None and noted.slot == slot:
                writes.append((GONE + before, None))
            writes.append((place, root))
            writes.append((GONE + root, encode(Gone(slot, now_ms))))
            writes.append((DOOMED + root, None))
            count += 1
        writes.append((META_GONE, u64(count)))
        self._store.write_batch(writes, sync=False)

    def gone_since(self, root: bytes) -> int | None:
        """Return the chain time at which a blob was removed, None for one never here."""
        noted = self._gone(root)
        return None if noted is None else noted.time_ms

    def _gone(self, root: bytes) -> Gone | None:
        raw = self._store.get(GONE + root)
        return None if raw is None else decode_own(Gone, raw, GONE_BYTES)
