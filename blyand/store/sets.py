"""Validator sets by root: every set that was in state, for checkpoints of any height.

State holds the sets of today only; whoever checks an old checkpoint, or shows a newcomer
how one set followed the other, finds its signers here.
"""

from __future__ import annotations

from blyan_proto.codec import encode
from blyan_proto.validators import Validators, ValidatorSet
from blyand.store.db import Store
from blyand.store.schema import SET, Batch, decode_own

MAX_SET_BYTES = 16 * 1024  # 128 members of 72 bytes


class SetStore:
    """The sets that this node has seen in state."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: set[bytes] = set()  # roots known to be on disk

    def at(self, root: bytes) -> ValidatorSet | None:
        """Return the set with this root, None when it was never here."""
        raw = self._store.get(SET + root)
        if raw is None:
            return None
        return ValidatorSet(decode_own(Validators, raw, MAX_SET_BYTES).members)

    def keep(self, *sets: ValidatorSet) -> None:
        """Write the sets that are new; durable with the next synced write. Blocking."""
        missing = [one for one in sets if one.root not in self._kept]
        if missing:
            self._store.write_batch(self.entries(*missing), sync=False)
            self._kept.update(one.root for one in missing)

    def entries(self, *sets: ValidatorSet) -> Batch:
        """Return the rows of sets, for a batch of the caller's."""
        return [(SET + one.root, encode(Validators(one.members))) for one in sets]
