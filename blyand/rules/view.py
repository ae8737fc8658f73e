"""What rules may look at: a key/value view of executed state, and an overlay on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from blyand.rules.posting import Posting


class View(Protocol):
    """Read-only key/value state."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of every key with the prefix, ascending."""
        ...


class Overlay:
    """Changes on top of a view: the scratch pad of one block, or of one checkpoint."""

    def __init__(self, below: View) -> None:
        self._below = below
        self.changes: dict[bytes, bytes | None] = {}
        self.journal: list[Posting] = []  # how money moved, in order

    def get(self, key: bytes) -> bytes | None:
        return self.changes[key] if key in self.changes else self._below.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs as they stood at the first step; read as far as is asked."""
        changed = sorted(
            (key, value)
            for key, value in self.changes.items()
            if key.startswith(prefix)
        )
        at = 0
        for key, value in self._below.scan(prefix):
            while at < len(changed) and changed[at][0] < key:
                yield from _present(changed[at])
                at += 1
            if at == len(changed) or changed[at][0] != key:
                yield key, value
        for pair in changed[at:]:
            yield from _present(pair)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set a key; None removes it."""
        self.changes[key] = value

    def merge(self, other: Overlay) -> None:
        """Take over the changes of an overlay that stood on this one."""
        self.changes.update(other.changes)
        self.journal += other.journal


def _present(pair: tuple[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    key, value = pair
    if value is not None:
        yield key, value
