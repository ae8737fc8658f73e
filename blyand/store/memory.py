"""The twin of `db.LevelStore` in memory, for simulations and tests."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from blyand.errors import StorageFault
from blyand.store.schema import Batch, after


class MemoryStore:
    """A `Store` whose every write is durable for as long as the object lives."""

    repaired = False
    was_clean = True

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []  # sorted
        self._lock = threading.Lock()
        self._closed = False
        self._is_shared = False  # with a snapshot: whoever writes next makes a copy

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._values.get(key)

    def write_batch(self, batch: Batch, *, sync: bool) -> None:
        self._check_open()
        with self._lock:
            if self._is_shared:
                self._values, self._keys = dict(self._values), list(self._keys)
                self._is_shared = False
            for key, value in batch:
                if value is None:
                    if self._values.pop(key, None) is not None:
                        del self._keys[bisect_left(self._keys, key)]
                else:
                    if key not in self._values:
                        insort(self._keys, key)
                    self._values[key] = value

    def scan(
        self, prefix: bytes, *, start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        with self._lock:
            found = _between(self._values, self._keys, prefix, start)
        return iter(found[::-1] if reverse else found)

    def snapshot(self, witness: bytes = b"") -> MemorySnapshot:
        self._check_open()
        with self._lock:
            self._is_shared = True
            return MemorySnapshot(self._values, self._keys)

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageFault("the database is closed")


class MemorySnapshot:
    """A `Snapshot` of a `MemoryStore`."""

    def __init__(self, values: dict[bytes, bytes], keys: list[bytes]) -> None:
        self._values, self._keys = values, keys  # nobody changes them any more

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def scan(
        self, prefix: bytes, *, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        return iter(_between(self._values, self._keys, prefix, start))

    def many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    def under(self, prefixes: Sequence[bytes]) -> list[list[tuple[bytes, bytes]]]:
        return [_between(self._values, self._keys, each, b"") for each in prefixes]


def _between(
    values: dict[bytes, bytes], keys: list[bytes], prefix: bytes, start: bytes
) -> list[tuple[bytes, bytes]]:
    end = after(prefix)
    low = bisect_left(keys, prefix + start)
    high = len(keys) if end is None else bisect_left(keys, end)
    return [(key, values[key]) for key in keys[low:high]]
