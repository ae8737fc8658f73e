"""Records of who has what: bounded per author and in all, each for its time only.

An author speaks only for itself, so that nobody can put another's name under a key.
Where there is no room, the author with most records loses its oldest (no author can
push out those who say less).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MAX_RECORDS = 65_536
MAX_RECORDS_PER_AUTHOR = 4_096


@dataclass(frozen=True)
class Bounds:
    """How many records there may be, and for how long."""

    ttl_s: float
    records: int = MAX_RECORDS
    of_author: int = MAX_RECORDS_PER_AUTHOR


class Records:
    """Provider records in memory. Times are arguments, in seconds, never decreasing."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._by_author: dict[str, dict[bytes, float]] = (
            {}
        )  # key -> expiry, oldest first
        self._by_key: dict[bytes, dict[str, None]] = {}
        self._count = 0
        self._loudest = ""  # of those who say much, one

    def __len__(self) -> int:
        return self._count

    def add(self, author: str, keys: Iterable[bytes], now_s: float) -> int:
        """Take down that `author` has `keys`; return how many there was room for."""
        keys = list(keys)
        if self._count + len(keys) > self._bounds.records:
            self.sweep(now_s)
        mine = self._by_author.setdefault(author, {})
        kept = 0
        for key in keys:
            if key in mine:
                del mine[key]  # to the end: it is the youngest now
            elif len(mine) >= self._bounds.of_author or not self._room(author):
                continue
            else:
                self._by_key.setdefault(key, {})[author] = None
                self._count += 1
            mine[key] = now_s + self._bounds.ttl_s
            kept += 1
        if not mine:
            del self._by_author[author]
        return kept

    def find(self, key: bytes, now_s: float) -> tuple[str, ...]:
        """Return who has `key`."""
        authors = self._by_key.get(key, ())
        return tuple(a for a in authors if self._by_author[a][key] > now_s)

    def sweep(self, now_s: float) -> None:
        """Forget what is over."""
        for author in list(self._by_author):
            mine = self._by_author[author]
            while mine and mine[oldest := next(iter(mine))] <= now_s:
                self._forget(author, oldest)

    def _room(self, author: str) -> bool:
        if self._count < self._bounds.records:
            return True
        few = len(self._by_author[author]) + 1
        if len(self._by_author.get(self._loudest, ())) <= few:
            self._loudest = max(
                self._by_author, key=lambda one: (len(self._by_author[one]), one)
            )
        loud = self._by_author[self._loudest]
        if len(loud) <= few:
            return False
        self._forget(self._loudest, next(iter(loud)))
        return True

    def _forget(self, author: str, key: bytes) -> None:
        mine, theirs = self._by_author[author], self._by_key[key]
        del mine[key], theirs[author]
        self._count -= 1
        if not mine:
            del self._by_author[author]
        if not theirs:
            del self._by_key[key]
