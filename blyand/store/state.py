"""The executed state: sorted keys and values in memory, mirrored in LevelDB, one root.

A key lives in one of 256 buckets, named by the first byte of its digest; a bucket's
hash covers its pairs in key order, and the root is the Merkle root of the 256 hashes.
So a change costs its buckets only, and a bucket is the chunk that a joiner fetches.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence

from blyan_proto import merkle
from blyan_proto.digest import Domain, digest
from blyand.store.db import Store
from blyand.store.schema import EXECUTED, after

BUCKETS = 256

Changes = Mapping[bytes, bytes | None]  # None deletes the key


def bucket_of(key: bytes) -> int:
    """Return the bucket of a key, 0…255."""
    return digest(Domain.STATE, key)[0]


def bucket_hash(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the hash of a bucket from its pairs in ascending key order."""
    return digest(Domain.STATE, *(part for pair in pairs for part in pair))


def root_of(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the root of a whole state, its pairs in any order."""
    buckets: list[list[tuple[bytes, bytes]]] = [[] for _ in range(BUCKETS)]
    for pair in sorted(pairs):
        buckets[bucket_of(pair[0])].append(pair)
    return merkle.root([bucket_hash(bucket) for bucket in buckets])


class State:
    """The state after some checkpoint. Not for use from several threads at once."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._values = dict(pairs)
        self._keys = sorted(self._values)
        self._buckets: list[list[bytes]] = [[] for _ in range(BUCKETS)]
        for key in self._keys:
            self._buckets[bucket_of(key)].append(key)
        self._hashes = [bucket_hash(self.bucket(i)) for i in range(BUCKETS)]
        self._root = merkle.root(self._hashes)

    @classmethod
    def load(cls, store: Store) -> State:
        """Return the state as the last committed checkpoint left it in `store`."""
        return cls((key[1:], value) for key, value in store.scan(EXECUTED))

    @property
    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        return self._root

    @property
    def hashes(self) -> Sequence[bytes]:
        """The 256 bucket hashes: the leaves under the root."""
        return tuple(self._hashes)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when absent."""
        return self._values.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the pairs under `prefix` in key order, as they stand now."""
        end = after(prefix)
        low = bisect_left(self._keys, prefix)
        high = len(self._keys) if end is None else bisect_left(self._keys, end)
        return iter([(key, self._values[key]) for key in self._keys[low:high]])

    def bucket(self, index: int) -> tuple[tuple[bytes, bytes], ...]:
        """Return the pairs of a bucket in key order."""
        return tuple((key, self._values[key]) for key in self._buckets[index])

    def preview(self, changes: Changes) -> bytes:
        """Return the root that `changes` would give, changing nothing."""
        return merkle.root(self._changed_hashes(changes))

    def apply(self, changes: Changes) -> bytes:
        """Change the state in memory and return the new root.

        The mirror in LevelDB is written before, by the commit of the checkpoint.
        """
        hashes = self._changed_hashes(changes)
        for key, value in changes.items():
            known = key in self._values
            if value is not None:
                self._values[key] = value
            if known and value is None:
                del self._values[key]
                _remove(self._keys, key)
                _remove(self._buckets[bucket_of(key)], key)
            elif not known and value is not None:
                insort(self._keys, key)
                insort(self._buckets[bucket_of(key)], key)
        self._hashes = hashes
        self._root = merkle.root(hashes)
        return self._root

    def _changed_hashes(self, changes: Changes) -> list[bytes]:
        touched: dict[int, dict[bytes, bytes | None]] = {}
        for key, value in changes.items():
            touched.setdefault(bucket_of(key), {})[key] = value
        hashes = list(self._hashes)
        for index, changed in touched.items():
            pairs: dict[bytes, bytes | None] = {**dict(self.bucket(index)), **changed}
            hashes[index] = bucket_hash(
                (key, value)
                for key, value in sorted(pairs.items())
                if value is not None
            )
        return hashes


def _remove(keys: list[bytes], key: bytes) -> None:
    del keys[bisect_left(keys, key)]
