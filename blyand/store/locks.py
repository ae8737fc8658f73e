"""What this validator precommitted last, with its proof: durable before the precommit.

The intent log knows the lock by its id only. Were all validators cut off between
precommit and decision, nobody would have the checkpoint's contents (DEC-A9).
"""

from __future__ import annotations

from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES
from blyan_proto.codec import encode
from blyand.rules.chain.effects import Lock
from blyand.store.db import Store
from blyand.store.schema import LOCK, decode_own


class LockStore:
    """One lock: the newest."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def at(self, height: int) -> Lock | None:
        """Return the lock if it is of that height."""
        raw = self._store.get(LOCK)
        if raw is None:
            return None
        lock = decode_own(Lock, raw, MAX_FINAL_CHECKPOINT_BYTES)
        return lock if lock.checkpoint.height == height else None

    def put(self, lock: Lock) -> None:
        """Store a lock in the place of the one before; durable on return."""
        self._store.write_batch([(LOCK, encode(lock))], sync=True)
