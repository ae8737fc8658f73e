"""Final checkpoints by height, each written together with everything it decides."""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.checkpoint import MAX_FINAL_CHECKPOINT_BYTES, FinalCheckpoint
from blyan_proto.codec import encode
from blyand.errors import StorageFault
from blyand.store import handovers
from blyand.store.blocks import SMALL_BYTES
from blyand.store.buckets import Changes, area_of, remove, touch, tree_of
from blyand.store.db import Store
from blyand.store.schema import (
    CHECKPOINT,
    MAX_OUTCOME_TEXT_BYTES,
    META_EXECUTED,
    ORDERED,
    PENDING,
    Batch,
    Outcome,
    checkpoint_key,
    decode_own,
    u64,
)

TOOK_EFFECT = 0
REFUSED = 1
UNKNOWN = 2  # ordered before the state that this node began with


class CheckpointStore:
    """What is final."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def at(self, height: int) -> FinalCheckpoint | None:
        """Return the final checkpoint of that height, None when it is not here."""
        raw = self._store.get(checkpoint_key(height))
        return None if raw is None else _decoded(raw)

    def latest(self) -> FinalCheckpoint | None:
        """Return the highest final checkpoint, None before the first."""
        for _, raw in self._store.scan(CHECKPOINT, reverse=True):
            return _decoded(raw)
        return None

    def range(self, from_height: int, count: int) -> tuple[FinalCheckpoint, ...]:
        """Return at most `count` checkpoints from `from_height` upwards."""
        found: list[FinalCheckpoint] = []
        for _, raw in self._store.scan(CHECKPOINT, start=u64(from_height)):
            if len(found) >= count:
                break
            found.append(_decoded(raw))
        return tuple(found)

    @property
    def executed_height(self) -> int:
        """Height of the checkpoint that the stored state is after, 0 before the first."""
        raw = self._store.get(META_EXECUTED)
        return 0 if raw is None else int.from_bytes(raw, "big")

    def stored_state_root(self) -> tuple[int, bytes]:
        """Return the height that the stored state is after, and its root.

        Every value is read and hashed again; nothing that was stored of it is trusted.
        """
        view = self._store.snapshot(META_EXECUTED)
        height = int.from_bytes(view.get(META_EXECUTED) or b"", "big")
        return height, tree_of(view, area_of(view)).root

    def put(self, final: FinalCheckpoint) -> None:
        """Store a checkpoint that is not executed yet, durable on return."""
        self._store.write_batch([self.entry(final)], sync=True)

    def batch(
        self,
        final: FinalCheckpoint,
        changes: Changes,
        outcomes: Sequence[tuple[int, str]],
        rows: Batch | None = None,
    ) -> Batch:
        """Return the writes of an executed checkpoint.

        `changes` are those of the executed state (None deletes); `outcomes` are (code,
        text) of each of the checkpoint's blocks in its order; of a block that is ordered
        again the first one stays, unless only this one takes effect; `rows` are what `State.writes`
        gave for the changes, None: made here. StorageFault when another checkpoint of
        this height is final.
        """
        blocks = final.checkpoint.blocks
        if len(outcomes) != len(blocks):
            raise ValueError(f"{len(outcomes)} outcomes of {len(blocks)} blocks")
        height = final.checkpoint.height
        writes: Batch = [self.entry(final), (META_EXECUTED, u64(height))]
        for position, (block, (code, text)) in enumerate(zip(blocks, outcomes)):
            outcome = Outcome(height, position, code, _shortened(text))
            if self._is_news(block, outcome):
                writes.append((ORDERED + block, encode(outcome)))
            writes.append((PENDING + block, None))
        writes += handovers.rows(final.checkpoint)
        return writes + (self._rows(changes) if rows is None else rows)

    def _is_news(self, block: bytes, outcome: Outcome) -> bool:
        raw = self._store.get(ORDERED + block)
        if raw is None:
            return True
        earlier = decode_own(Outcome, raw, SMALL_BYTES)
        # A refused block did not spend its sequence.
        return (earlier.code, outcome.code) == (REFUSED, TOOK_EFFECT)

    def commit_checkpoint(
        self,
        final: FinalCheckpoint,
        changes: Changes,
        outcomes: Sequence[tuple[int, str]],
        rows: Batch | None = None,
    ) -> None:
        """Write `batch(…)` as one batch, durable on return."""
        self._store.write_batch(self.batch(final, changes, outcomes, rows), sync=True)

    def put_state(
        self, changes: Changes, entries: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> None:
        """Write the state of the genesis, and what it gave, durable on return."""
        self._store.write_batch([*self._rows(changes), *entries], sync=True)

    def forget_execution(self) -> None:
        """Drop executed state and outcomes, to execute again from the first checkpoint.

        For a state whose root is not its checkpoint's (DEC-D4). Checkpoints and blocks
        stay. The height goes first, so that an interrupted call is seen and repeated.
        """
        self._store.write_batch([(META_EXECUTED, None)], sync=True)
        remove(self._store, (*area_of(self._store).prefixes, ORDERED))

    def _rows(self, changes: Changes) -> Batch:
        return touch(self._store.snapshot(), area_of(self._store), changes).writes

    def entry(self, final: FinalCheckpoint) -> tuple[bytes, bytes]:
        height = final.checkpoint.height
        earlier = self.at(height)
        if earlier is not None and earlier.checkpoint.id != final.checkpoint.id:
            raise StorageFault(f"two final checkpoints of height {height}")
        return checkpoint_key(height), encode(final)


def _decoded(raw: bytes) -> FinalCheckpoint:
    return decode_own(FinalCheckpoint, raw, MAX_FINAL_CHECKPOINT_BYTES)


def _shortened(text: str) -> str:
    return text.encode()[:MAX_OUTCOME_TEXT_BYTES].decode(errors="ignore")
