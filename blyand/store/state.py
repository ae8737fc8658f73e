"""The executed state: keys and values in LevelDB under one root, read while it grows.

Readers see the state of the newest checkpoint through a snapshot of the database, which
`apply` swaps; so they are never in the middle of one. What changes costs the buckets
that it touches and their paths to the root. docs/consensus.md, "State".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blyan_proto.state import StateProof
from blyand.store.buckets import Changes, Touched, hashes_of, touch
from blyand.store.db import Store
from blyand.store.frozen import Frozen
from blyand.store.memory import MemoryStore
from blyand.store.schema import META_EXECUTED, Batch
from blyand.store.tree import EMPTY, Tree


def root_of(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the root of a whole state, its pairs in any order."""
    return EMPTY.with_buckets(hashes_of(pairs)).root


class State:
    """The state after the newest checkpoint.

    One thread at a time changes it or tries changes; any may read meanwhile.
    """

    def __init__(
        self, pairs: Iterable[tuple[bytes, bytes]] = (), *, store: Store | None = None
    ) -> None:
        """Open the state in `store`; without one, keep `pairs` in memory."""
        self._store = MemoryStore() if store is None else store
        self._is_own = store is None  # nobody else writes what is applied
        self._now = Frozen.of(self._store)
        self._tried: tuple[Frozen, Changes, Touched, Tree] | None = None
        if first := dict(pairs):
            self.apply(first)

    @classmethod
    def load(cls, store: Store) -> State:
        """Return the state as the last committed checkpoint left it in `store`.

        The stored hashes are trusted: hold the root against the checkpoint's.
        """
        return cls(store=store)

    @property
    def root(self) -> bytes:
        """The Merkle root, 32 bytes."""
        return self._now.root

    @property
    def hashes(self) -> Sequence[bytes]:
        """The 256 hashes at depth 8, one of each chunk."""
        return self._now.manifest.hashes

    def __len__(self) -> int:
        return self._now.count

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when absent."""
        return self._now.get(key)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Iterate the pairs under `prefix` in key order, as they stand now."""
        return self._now.scan(prefix)

    def freeze(self) -> Frozen:
        """Return the state as it stands, to be read whatever is executed later."""
        return self._now

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of what stands under `key`; see `Frozen.prove`."""
        return self._now.prove(key)

    def preview(self, changes: Changes) -> bytes:
        """Return the root that `changes` would give, changing nothing. Blocking."""
        return self._try(changes)[3].root

    def writes(self, changes: Changes) -> Batch:
        """Return the rows that a commit of `changes` writes. Blocking."""
        return self._try(changes)[2].writes

    def apply(self, changes: Changes) -> bytes:
        """Go over to the state with `changes`, which the database holds already.

        Quick after a `preview` of the same changes. Returns the new root.
        """
        before, _, touched, tree = self._try(changes)
        if self._is_own:
            self._store.write_batch(touched.writes, sync=False)
        view = self._store.snapshot(META_EXECUTED)
        # What was tried stays until something else is, since freeing it takes a while.
        self._now = Frozen(view, before.area, tree, before.count + touched.added)
        return tree.root

    def reload(self) -> None:
        """Go over to what is the executed state in the database now. Blocking."""
        self._now, self._tried = Frozen.of(self._store), None

    def _try(self, changes: Changes) -> tuple[Frozen, Changes, Touched, Tree]:
        """Return what `changes` do; what was tried last is remembered."""
        now, tried = self._now, self._tried
        if tried is None or tried[0] is not now or tried[1] != changes:
            touched = touch(now.view, now.area, changes)
            tree = now.tree.with_buckets(touched.hashes)
            self._tried = tried = (now, dict(changes), touched, tree)
        return tried
