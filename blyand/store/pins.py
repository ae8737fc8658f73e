"""Pins: what the operator of this node wants kept, whatever retention says (DEC-B9)."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from blyand.store.db import Store
from blyand.store.schema import PIN, Batch, u64

MAX_PINS = 65_536


class PinKind(enum.IntEnum):
    """What is pinned, and so what its id is."""

    BLOB = 1  # a root: its file stays
    BLOCK = 2  # a block id: its payload stays, and the blobs that it names
    MODEL = 3  # a model's block id: all its weights, updates and snapshots stay
    DATASET = 4  # a dataset's block id: its archive stays


class Pins:
    """The pins of one home. Reads come from memory; safe from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pins = {
            (PinKind(key[1]), key[2:]): int.from_bytes(raw, "big")
            for key, raw in store.scan(PIN)
        }

    def __len__(self) -> int:
        return len(self._pins)

    def __contains__(self, pin: tuple[PinKind, bytes]) -> bool:
        return pin in self._pins

    def __iter__(self) -> Iterator[tuple[PinKind, bytes, int]]:
        """Iterate (kind, id, Unix time in ms when it was pinned)."""
        return iter([(kind, id, at) for (kind, id), at in self._pins.items()])

    def since(self, kind: PinKind, id: bytes) -> int:
        """Return when something was pinned, Unix time in ms; 0 when it is not."""
        return self._pins.get((kind, id), 0)

    def add(self, kind: PinKind, id: bytes, now_ms: int) -> None:
        """Pin, durable on return; what is pinned keeps its time."""
        if (kind, id) not in self._pins:
            self._write([(_key(kind, id), u64(now_ms))])
            self._pins[kind, id] = now_ms

    def remove(self, kind: PinKind, id: bytes) -> bool:
        """Unpin, durable on return; False when it was not pinned."""
        if (kind, id) not in self._pins:
            return False
        self._write([(_key(kind, id), None)])
        del self._pins[kind, id]
        return True

    def _write(self, writes: Batch) -> None:
        self._store.write_batch(writes, sync=True)


def _key(kind: PinKind, id: bytes) -> bytes:
    return PIN + bytes([kind]) + id
