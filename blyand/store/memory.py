"""The twin of `db.LevelStore` in memory, for simulations and tests."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Iterator

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

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._values.get(key)

    def write_batch(self, batch: Batch, *, sync: bool) -> None:
        self._check_open()
        with self._lock:
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
            end = after(prefix)
            low = bisect_left(self._keys, prefix + start)
            high = len(self._keys) if end is None else bisect_left(self._keys, end)
            pairs = [(key, self._values[key]) for key in self._keys[low:high]]
        return iter(pairs[::-1] if reverse else pairs)

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageFault("the database is closed")
