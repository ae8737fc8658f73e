"""A table of executed state: a key prefix and a type of record.

Keys are the prefix and fixed-width parts, so that a scan gives records in order.
docs/store-schema.md lists the tables; each stands beside the rules that write it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Generic, TypeVar

from blyan_proto.codec import decode, encode
from blyan_proto.constants import MIB
from blyand.rules.view import Overlay, View

T = TypeVar("T")

MAX_WALKED = 65_536  # records of one table
MAX_RECORD_BYTES = 16 * MIB  # a schedule of 1024 seats with the longest bitmaps has 9


class Table(Generic[T]):
    """One kind of record under one prefix."""

    def __init__(self, prefix: bytes, record: type[T], *, walked: bool = False) -> None:
        """`walked`: all records are read again and again, so one of each key is kept."""
        self._prefix = prefix + b"/"
        self._record = record
        # The same bytes are read again and again, and never change.
        self._decoded = lru_cache(maxsize=256)(self._decode)
        self._walked: dict[bytes, tuple[bytes, T]] | None = {} if walked else None

    def get(self, view: View, *parts: bytes | int) -> T | None:
        key = self._key(parts)
        raw = view.get(key)
        return None if raw is None else self._read(key, raw)

    def put(self, view: Overlay, record: T, *parts: bytes | int) -> None:
        view.put(self._key(parts), encode(record))

    def remove(self, view: Overlay, *parts: bytes | int) -> None:
        view.put(self._key(parts), None)

    def scan(self, view: View, *parts: bytes | int) -> Iterator[T]:
        """Yield records in key order; `parts` narrows the scan to a leading part."""
        for key, raw in view.scan(self._key(parts)):
            yield self._read(key, raw)

    def _read(self, key: bytes, raw: bytes) -> T:
        if self._walked is None:
            return self._decoded(raw)
        known = self._walked.get(key)
        if known is None or known[0] != raw:
            if len(self._walked) >= MAX_WALKED:
                self._walked.clear()
            known = self._walked[key] = raw, self._decode(raw)
        return known[1]

    def _decode(self, raw: bytes) -> T:
        return decode(self._record, raw, MAX_RECORD_BYTES)

    def key(self, *parts: bytes | int) -> bytes:
        """Return the key of a record: what a proof is asked for."""
        return self._key(parts)

    def _key(self, parts: tuple[bytes | int, ...]) -> bytes:
        return self._prefix + b"".join(
            part.to_bytes(8, "big") if isinstance(part, int) else part for part in parts
        )
