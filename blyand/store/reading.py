"""Reading LevelDB, or a snapshot of it, while others write, close and open it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from blyand.errors import StorageFault
from blyand.store.gate import Gate
from blyand.store.level import ERRORS
from blyand.store.schema import after

READ_AT_ONCE = 64  # most pairs that a scan takes in one turn: 4 MiB of payloads

Pairs = Iterator[tuple[bytes, bytes]]


class Reader:
    """Gets and scans. Blocking; safe to use from several threads.

    `source` returns what is read, and the number of the opening that it belongs to;
    it is asked inside the gate. `fault` turns an error of plyvel into ours.
    """

    def __init__(
        self,
        gate: Gate,
        source: Callable[[], tuple[Any, int]],
        fault: Callable[[Exception], StorageFault],
    ) -> None:
        self._gate = gate
        self._source = source
        self._fault = fault

    def get(self, key: bytes) -> bytes | None:
        with self._gate:
            try:
                value: bytes | None = self._source()[0].get(key, verify_checksums=True)
            except ERRORS as error:
                raise self._fault(error) from error
        return value

    def scan(
        self, prefix: bytes, *, start: bytes = b"", reverse: bool = False
    ) -> Pairs:
        low, end = prefix + start, after(prefix)
        with self._gate:
            # LevelDB fixes an iterator's view when it is made, so make it now.
            pairs, opening = self._iterator(low, end, reverse)
            return self._in_turns(pairs, opening, low, end, reverse)

    def many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, None for absent ones; quicker than one by one."""
        with self._gate:
            try:
                source = self._source()[0]
                return [source.get(key, verify_checksums=True) for key in keys]
            except ERRORS as error:
                raise self._fault(error) from error

    def under(self, prefixes: Sequence[bytes]) -> list[list[tuple[bytes, bytes]]]:
        """Return the pairs under each prefix: quick for many, in ascending order."""
        found: list[list[tuple[bytes, bytes]]] = []
        with self._gate:
            try:
                pairs = self._source()[0].iterator(verify_checksums=True)
                for prefix in prefixes:
                    pairs.seek(prefix)
                    some: list[tuple[bytes, bytes]] = []
                    for pair in pairs:
                        if not pair[0].startswith(prefix):
                            break
                        some.append(pair)
                    found.append(some)
                pairs.close()
            except ERRORS as error:
                raise self._fault(error) from error
        return found

    # Inside

    def _iterator(
        self, low: bytes, end: bytes | None, reverse: bool
    ) -> tuple[Any, int]:
        source, opening = self._source()
        # In reverse, plyvel 1.5.1 finds nothing if the last key is `start` itself.
        try:
            pairs = source.iterator(
                start=None if reverse else low,
                stop=end,
                reverse=reverse,
                verify_checksums=True,
            )
        except ERRORS as error:
            raise self._fault(error) from error
        return pairs, opening

    def _in_turns(
        self, pairs: Any, opening: int, low: bytes, end: bytes | None, reverse: bool
    ) -> Pairs:
        """Yield pairs, the first one soon; after an opening, go on behind the last."""
        count = 1
        try:
            while True:
                with self._gate:
                    if opening != self._source()[1]:
                        pairs, opening = self._iterator(low, end, reverse)
                    some = self._some(pairs, count)
                for key, value in some:
                    if key < low:
                        return
                    yield key, value
                if len(some) < count:
                    return
                if reverse:
                    end = some[-1][0]
                else:
                    low = some[-1][0] + b"\0"
                count = min(4 * count, READ_AT_ONCE)
        finally:
            with self._gate:
                pairs.close()

    def _some(self, pairs: Iterator[Any], count: int) -> list[tuple[bytes, bytes]]:
        try:
            return list(islice(pairs, count))
        except ERRORS as error:
            raise self._fault(error) from error
