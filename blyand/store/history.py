"""How far down the chain is here, where a node began with a state (DEC-A11).

Such a node has everything from the checkpoint on that it joined at. What lies below
comes later, from there downwards: first the checkpoints, which say where every block was
ordered, then the blocks. Each place is written together with what it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blyan_proto.block.header import SignedHeader
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import U64, encode, message
from blyand.rules.chain.intake import Checked
from blyand.store import handovers
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import TOOK_EFFECT, UNKNOWN, CheckpointStore
from blyand.store.db import Store
from blyand.store.schema import (
    META_FLOOR,
    META_FLOOR_NEXT,
    ORDERED,
    PENDING,
    Batch,
    Outcome,
    decode_own,
)

FLOOR_BYTES = 64


@message
class Floor:
    """The lowest heights from which on nothing is missing."""

    joined: U64  # where a state came from; 0: never
    checkpoints: U64
    blocks: U64
    handovers: U64  # hand-overs alone


WHOLE = Floor(0, 1, 1, 1)


class History:
    """What is here of the chain below the first executed checkpoint. Blocking."""

    def __init__(
        self, store: Store, checkpoints: CheckpointStore, blocks: BlockStore
    ) -> None:
        self._store, self._checkpoints, self._blocks = store, checkpoints, blocks
        self._floor = self._read(META_FLOOR) or WHOLE
        self._coming = self._read(META_FLOOR_NEXT)

    @property
    def floor(self) -> Floor:
        """How far down all is here."""
        coming = self._coming
        if coming is not None and coming.joined <= self._checkpoints.executed_height:
            self._floor, self._coming = coming, None  # that state is executed state now
        return self._floor

    def _read(self, row: bytes) -> Floor | None:
        raw = self._store.get(row)
        return None if raw is None else decode_own(Floor, raw, FLOOR_BYTES)

    @property
    def is_whole(self) -> bool:
        """True when nothing is missing down to the first checkpoint."""
        return self.floor.blocks <= 1 and self.floor.checkpoints <= 1

    def begin(
        self, joined: FinalCheckpoint, steps: Sequence[FinalCheckpoint], since: int
    ) -> None:
        """Note where history begins once the state after `joined` is the executed one.

        `steps` are all hand-overs from height `since` on that led to it.
        """
        height = joined.checkpoint.height
        writes: Batch = []
        for final in steps:
            writes.append(self._checkpoints.entry(final))
            writes += handovers.rows(final.checkpoint)
        writes += handovers.rows(joined.checkpoint) + self._places(joined)
        self._coming = Floor(height, height, height + 1, min(since, height))
        writes.append((META_FLOOR_NEXT, encode(self._coming)))
        self._store.write_batch(writes, sync=True)

    def put(self, finals: Sequence[FinalCheckpoint]) -> None:
        """Store checkpoints right below the floor, descending; durable on return.

        What became of their blocks is not known here, unless they were executed before.
        """
        writes: Batch = []
        floor = self.floor
        for final in finals:
            checkpoint = final.checkpoint
            if checkpoint.height != floor.checkpoints - 1:
                raise ValueError("a checkpoint that is not the next one below")
            writes.append(self._checkpoints.entry(final))
            writes += handovers.rows(checkpoint)
            writes += self._places(final)
            floor = replace(
                floor,
                checkpoints=checkpoint.height,
                handovers=min(floor.handovers, checkpoint.height),
            )
        self._write(writes, floor)

    def _places(self, final: FinalCheckpoint) -> Batch:
        """Return the rows that say where a checkpoint ordered its blocks.

        Of one that is ordered twice, where it took effect, or else the first time.
        """
        writes: Batch = []
        for position, id in enumerate(final.checkpoint.blocks):
            known = self._blocks.outcome(id)
            if known is None or (
                known.code != TOOK_EFFECT and known.height > final.checkpoint.height
            ):
                outcome = Outcome(final.checkpoint.height, position, UNKNOWN, "")
                writes += [(ORDERED + id, encode(outcome)), (PENDING + id, None)]
        return writes

    def put_blocks(
        self,
        height: int,
        whole: Sequence[Checked],
        headers: Sequence[SignedHeader],
        now_ms: int,
    ) -> None:
        """Store what was missing of the blocks of the checkpoint at `height`, and note
        that from there on all are here; of `headers` the payload counts as pruned."""
        writes: Batch = []
        for checked in whole:
            writes += self._blocks.old(checked)
        for signed in headers:
            writes += self._blocks.old_header(signed, now_ms)
        self._write(writes, replace(self.floor, blocks=height))

    def _write(self, writes: Batch, floor: Floor) -> None:
        writes += [(META_FLOOR, encode(floor)), (META_FLOOR_NEXT, None)]
        self._store.write_batch(writes, sync=True)
        self._floor = floor
