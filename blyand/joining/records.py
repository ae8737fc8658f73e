"""What this node can show others of what is final, and where its history ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blyan_proto.block.header import SignedHeader
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.validators import ValidatorSet
from blyand.errors import NotHere
from blyand.store import handovers
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import Store
from blyand.store.history import History
from blyand.store.sets import SetStore


@dataclass(frozen=True)
class Records:
    """Blocking. NotHere for what lies below this node's history."""

    store: Store
    checkpoints: CheckpointStore
    history: History
    sets: SetStore
    blocks: BlockStore

    def range(self, from_height: int, count: int) -> Sequence[FinalCheckpoint]:
        """Return consecutive checkpoints from a height on, as far as there are some."""
        found: list[FinalCheckpoint] = []
        for final in self.checkpoints.range(from_height, count):
            if final.checkpoint.height != from_height + len(found):
                break
            found.append(final)
        if not found and from_height < self.history.floor.checkpoints:
            raise NotHere(f"checkpoint {from_height} is below what is here")
        return found

    def handovers(self, from_height: int, count: int) -> Sequence[FinalCheckpoint]:
        """Return the checkpoints from a height on after which another set signs."""
        if from_height < self.history.floor.handovers:
            raise NotHere(f"the hand-overs from {from_height} on are not all here")
        return handovers.from_height(
            self.store, self.checkpoints.at, from_height, count
        )

    def members(self, root: bytes) -> ValidatorSet:
        """Return the validator set with that root."""
        found = self.sets.at(root)
        if found is None:
            raise NotHere(f"the validator set {root.hex()[:16]} is unknown here")
        return found

    def header(self, id: bytes) -> SignedHeader | None:
        """Return the header of a block that a checkpoint ordered."""
        return self.blocks.signed_header(id)
