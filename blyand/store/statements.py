"""What moved on every account, by checkpoint: for people and for audits, not for consensus.

Strategy. An entry is what one block moved, or a part of what a checkpoint's end moved;
it is written in the batch of its checkpoint, so re-execution writes it again. Under each
account that it touches stands its place, newest first. Entries may be pruned from the
oldest on. The baseline is what every purse held when it was last audited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple

from blyan_proto.codec import I64, U8, U64, Size, encode, message
from blyan_proto.types import Account, BlockId
from blyand.rules.posting import Posting
from blyand.store.db import Store
from blyand.store.schema import (
    BASELINE,
    META_AUDITED,
    META_STATED,
    MOVED,
    STATED,
    Batch,
    decode_own,
    u64,
)

AT_END = 1 << 16  # first position of what no block did: behind every block
LINES = 256  # most lines of an entry of a checkpoint's end
MAX_ENTRY_BYTES = 1 << 20
REMOVED_AT_ONCE = 10_000  # keys per batch
_LAST = 2**64 - 1


@message
class Line:
    """One posting."""

    account: Account
    purse: U8
    micro: I64
    why: Annotated[str, Size(0, 64)]


@message
class Entry:
    """What one block moved; without a block, what a checkpoint's end did."""

    block: BlockId | None
    lines: Annotated[tuple[Line, ...], Size(0, 65_535)]


@message
class Audited:
    """Up to which checkpoint the books were found right, and when."""

    height: U64
    time_ms: U64  # chain time


class Place(NamedTuple):
    """Where an entry stands."""

    height: int
    position: int  # of its block in the checkpoint; from AT_END on: its end


def rows_of(
    height: int,
    outcomes: Sequence[tuple[bytes, tuple[Posting, ...]]],
    ending: Sequence[Posting],
) -> Batch:
    """Return the writes of one checkpoint: (block, postings) in its order, and its end."""
    rows: Batch = [] if height else [(META_STATED, u64(0))]
    for position, (block, postings) in enumerate(outcomes):
        if postings:
            _add(rows, Place(height, position), block, postings)
    for number, first in enumerate(range(0, len(ending), LINES)):
        part = ending[first : first + LINES]
        _add(rows, Place(height, AT_END + number), None, part)
    return rows


def _add(
    rows: Batch, place: Place, block: bytes | None, postings: Sequence[Posting]
) -> None:
    lines = tuple(Line(p.account, int(p.purse), p.micro, p.why[:64]) for p in postings)
    rows.append((_entry_key(place), encode(Entry(block, lines))))
    for account in {line.account for line in lines}:
        rows.append((_moved_key(account, place), b""))


class Statements:
    """What moved, as far back as it is kept. Blocking; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def at(self, height: int, position: int) -> Entry | None:
        """Return the entry at a place; None when nothing moved, or it is pruned."""
        raw = self._store.get(_entry_key(Place(height, position)))
        return None if raw is None else decode_own(Entry, raw, MAX_ENTRY_BYTES)

    def oldest(self) -> int | None:
        """Return the height of the oldest entry, None without any."""
        for key, _ in self._store.scan(STATED):
            return int.from_bytes(key[1:9], "big")
        return None

    def of(
        self, account: bytes, before: Place | None, limit: int
    ) -> list[tuple[Place, Entry]]:
        """Return at most `limit` entries that touch an account, newest first."""
        start = b"" if before is None else _moved_key(account, before)[21:] + b"\0"
        found = []
        for key, _ in self._store.scan(MOVED + account, start=start):
            place = _place_in(key)
            entry = self.at(*place)
            if entry is not None:
                found.append((place, entry))
            if len(found) == limit:
                break
        return found

    def since(self, height: int, upto: int) -> Iterator[tuple[Place, Entry]]:
        """Yield the entries above `height`, up to `upto`, in their order."""
        for key, raw in self._store.scan(STATED, start=u64(height + 1)):
            place = Place(
                int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:13], "big")
            )
            if place.height > upto:
                return
            yield place, decode_own(Entry, raw, MAX_ENTRY_BYTES)

    def moved(self, height: int, upto: int) -> dict[tuple[bytes, int], int]:
        """Return what came to each (account, purse) above `height`, up to `upto`."""
        sums: dict[tuple[bytes, int], int] = defaultdict(int)
        for _, entry in self.since(height, upto):
            for line in entry.lines:
                sums[line.account, line.purse] += line.micro
        return sums

    def whole_since(self) -> int | None:
        """Return the height after which nothing is missing, 0: not even the genesis.

        A state that came from elsewhere begins anew (`Restore.finish`).
        """
        raw = self._store.get(META_STATED)
        return None if raw is None else int.from_bytes(raw, "big")

    def audited(self) -> Audited | None:
        """Return the last audit that found nothing, None before the first."""
        raw = self._store.get(META_AUDITED)
        return None if raw is None else decode_own(Audited, raw, 64)

    def drop_baseline(self) -> None:
        """Forget the last audit."""
        self._store.write_batch([(META_AUDITED, None)], sync=True)
        self._remove(BASELINE)

    def baseline(self) -> Iterator[tuple[tuple[bytes, int], int]]:
        """Yield (account, purse) and what it held at the last audit, ascending."""
        for key, value in self._store.scan(BASELINE):
            yield (key[1:21], key[21]), int.from_bytes(value, "big")

    def keep_baseline(
        self, changed: Mapping[tuple[bytes, int], int], audited: Audited
    ) -> None:
        """Note what the purses held that moved since the last audit, 0 for nothing."""
        rows: Batch = [
            (BASELINE + account + bytes([purse]), u64(micro) if micro else None)
            for (account, purse), micro in changed.items()
        ]
        rows.append((META_AUDITED, encode(audited)))
        self._store.write_batch(rows, sync=True)

    def prune(self, height: int) -> int:
        """Drop the entries below `height`; return how many."""
        removed: Batch = []
        count = 0
        for key, raw in self._store.scan(STATED):
            place = Place(
                int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:13], "big")
            )
            if place.height >= height or count == REMOVED_AT_ONCE:
                break
            entry = decode_own(Entry, raw, MAX_ENTRY_BYTES)
            removed.append((key, None))
            for account in {line.account for line in entry.lines}:
                removed.append((_moved_key(account, place), None))
            count += 1
        self._store.write_batch(removed, sync=False)
        return count

    def forget(self) -> None:
        """Drop everything: it is executed again, or state came from elsewhere."""
        gone: Batch = [(META_AUDITED, None), (META_STATED, None)]
        self._store.write_batch(gone, sync=True)
        for prefix in (STATED, MOVED, BASELINE):
            self._remove(prefix)

    def _remove(self, prefix: bytes) -> None:
        removed: Batch = []
        for key, _ in self._store.scan(prefix):
            removed.append((key, None))
            if len(removed) == REMOVED_AT_ONCE:
                self._store.write_batch(removed, sync=False)
                removed = []
        self._store.write_batch(removed, sync=True)


def _entry_key(place: Place) -> bytes:
    return STATED + u64(place.height) + place.position.to_bytes(4, "big")


def _moved_key(account: bytes, place: Place) -> bytes:
    """Return a key that sorts newer places first."""
    height, position = _LAST - place.height, 2**32 - 1 - place.position
    return MOVED + account + u64(height) + position.to_bytes(4, "big")


def _place_in(key: bytes) -> Place:
    height, position = key[21:29], key[29:33]
    return Place(
        _LAST - int.from_bytes(height, "big"),
        2**32 - 1 - int.from_bytes(position, "big"),
    )
