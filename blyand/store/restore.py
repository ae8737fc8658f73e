"""A state that comes from others, chunk by chunk, beside the executed one.

Its rows go into the other area (schema.AREAS), each part in one batch with how far its
chunk has come; so a kill costs at most the part on its way. A complete chunk is hashed
and held against the manifest, whose root a final checkpoint names. When all are there,
one batch makes the area the executed one. Until then nothing of the node's own state is
touched. SYNC-02, DEC-A11.
"""

from __future__ import annotations

from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    Checkpoint,
    FinalCheckpoint,
)
from blyan_proto.codec import U64, encode, message
from blyan_proto.constants import MIB
from blyan_proto.errors import BadProof
from blyan_proto.state import (
    CHUNKS,
    StateManifest,
    StatePart,
    path_of,
    value_digest,
)
from blyan_proto.types import Hash
from blyand.store.buckets import (
    ROWS_AT_ONCE,
    area_of,
    bucket_rows,
    load,
    remove,
    tree_of_rows,
)
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import Store
from blyand.store.schema import (
    AREAS,
    META_AREA,
    META_EXECUTED,
    META_RESTORING,
    META_STATED,
    RESTORED,
    Area,
    Batch,
    decode_own,
    u64,
)
from blyand.store.tree import EMPTY

# A stranger's bytes that nothing vouches for until a chunk is complete: a thousand times
# what a chunk has in a state of a million keys.
MAX_CHUNK_BYTES = 256 * MIB
PAIR_BYTES = 128  # what a pair costs beside its key and value
MAX_RESTORING_BYTES = MAX_FINAL_CHECKPOINT_BYTES


@message
class Restoring:
    """The state that is being fetched."""

    checkpoint: Checkpoint  # whose state it is
    manifest: StateManifest


@message
class Restored:
    """How far one chunk has come; written together with its pairs."""

    after: Hash | None  # path of its last pair here
    bytes: U64  # keys, values and PAIR_BYTES each
    is_whole: bool  # complete, and what the manifest says


NOTHING = Restored(None, 0, False)
EMPTY_CHUNK = EMPTY.manifest.hashes[0]


class Restore:
    """A state on its way. Blocking; one thread at a time."""

    def __init__(self, store: Store, what: Restoring) -> None:
        self._store = store
        self._what = what
        self._area = _other(store)
        self._chunks = {
            row[1]: decode_own(Restored, raw, MAX_RESTORING_BYTES)
            for row, raw in store.scan(RESTORED)
        }

    @classmethod
    def begin(
        cls, store: Store, checkpoint: Checkpoint, manifest: StateManifest
    ) -> Restore:
        """Return the restore of the state after `checkpoint`: a new one, or the same
        as was under way, gone on with. BadProof when the manifest is of another state.
        """
        if manifest.root != checkpoint.state_root:
            raise BadProof("the manifest is not of the checkpoint's state")
        what = Restoring(checkpoint, manifest)
        under_way = cls.resume(store)
        if under_way is not None and under_way._what == what:
            return under_way
        abandon(store)
        store.write_batch([(META_RESTORING, encode(what))], sync=True)
        return cls(store, what)

    @classmethod
    def resume(cls, store: Store) -> Restore | None:
        """Return the restore that was under way before a restart, None without one."""
        raw = store.get(META_RESTORING)
        if raw is None:
            return None
        return cls(store, decode_own(Restoring, raw, MAX_RESTORING_BYTES))

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint after which the state is."""
        return self._what.checkpoint

    @property
    def manifest(self) -> StateManifest:
        """What each chunk must hash to."""
        return self._what.manifest

    @property
    def received_bytes(self) -> int:
        """About what is here, in bytes; of before a restart, too."""
        return sum(chunk.bytes for chunk in self._chunks.values())

    def missing(self) -> tuple[int, ...]:
        """Return the chunks that are not complete, ascending."""
        return tuple(c for c in range(CHUNKS) if not self._at(c).is_whole)

    def after(self, chunk: int) -> bytes | None:
        """Return the path behind which the next part of a chunk begins."""
        return self._at(chunk).after

    def put(self, part: StatePart) -> bool:
        """Keep a part; True when its chunk is complete with it, and checked.

        A part that is not the next one of its chunk is left out. BadProof when it, or
        the chunk that it completes, is not what it should be; the chunk is dropped then,
        and asked for anew.
        """
        chunk, here = part.chunk, self._at(part.chunk)
        if here.is_whole or part.after != here.after:
            return False
        try:
            writes, here = self._rows_of(part, here)
            if part.after is None:
                self._clear(chunk)  # a kill may have come into a drop
            self._write(chunk, writes, here)
            if part.is_last:
                self._complete(chunk, here)
        except BadProof:
            self.drop(chunk)
            raise
        return part.is_last

    def drop(self, chunk: int) -> None:
        """Forget what is here of a chunk."""
        if self._chunks.pop(chunk, None) is not None:
            self._store.write_batch([(RESTORED + bytes([chunk]), None)], sync=False)
            self._clear(chunk)

    def finish(self, final: FinalCheckpoint) -> None:
        """Make this the executed state, after `final`; one batch, durable on return.

        ValueError while chunks are missing, or when it is another checkpoint's.
        """
        if final.checkpoint != self.checkpoint or self.missing():
            raise ValueError("the state is not complete, or of another checkpoint")
        root = load(self._store.snapshot(), self._area)[0].root
        if root != self.checkpoint.state_root:
            raise BadProof("the restored state lost something on this disk; begin anew")
        replaced = area_of(self._store)
        writes: Batch = [
            CheckpointStore(self._store).entry(final),
            (META_EXECUTED, u64(final.checkpoint.height)),
            (META_AREA, bytes([AREAS.index(self._area)])),
            (META_STATED, u64(final.checkpoint.height)),
            *_forgotten(),
        ]
        self._store.write_batch(writes, sync=True)
        remove(self._store, replaced.prefixes)

    # Inside

    def _at(self, chunk: int) -> Restored:
        if self.manifest.hashes[chunk] == EMPTY_CHUNK:
            return Restored(None, 0, True)
        return self._chunks.get(chunk, NOTHING)

    def _rows_of(self, part: StatePart, here: Restored) -> tuple[Batch, Restored]:
        last, size = here.after or bytes([part.chunk]), here.bytes
        writes: Batch = []
        for pair in part.pairs:
            path = path_of(pair.key)
            if path[0] != part.chunk or path <= last:
                raise BadProof("a part of the state has pairs that do not belong there")
            writes.append((self._area.value + pair.key, pair.value))
            entry = value_digest(pair.value) + pair.key
            writes.append((self._area.entry + path, entry))
            last, size = path, size + len(pair.key) + len(pair.value) + PAIR_BYTES
        if size > MAX_CHUNK_BYTES:
            raise BadProof("a chunk of the state does not end")
        if not part.pairs and not part.is_last:
            raise BadProof("a part of the state is empty")
        after = last if part.pairs else here.after
        return writes, Restored(after, size, False)

    def _complete(self, chunk: int, here: Restored) -> None:
        view, prefix = self._store.snapshot(), bytes([chunk])
        rows = bucket_rows(view, self._area, prefix)
        hashed = tree_of_rows(rows)[0].manifest.hashes[chunk]
        if hashed != self.manifest.hashes[chunk]:
            raise BadProof(f"chunk {chunk} of the state is not what its hash says")
        self._write(chunk, list(rows), Restored(here.after, here.bytes, True))

    def _write(self, chunk: int, writes: Batch, here: Restored) -> None:
        row = (RESTORED + bytes([chunk]), encode(here))
        self._store.write_batch([*writes, row], sync=False)
        self._chunks[chunk] = here

    def _clear(self, chunk: int) -> None:
        buckets = self._area.bucket + bytes([chunk])
        removed: Batch = [(row, None) for row, _ in self._store.scan(buckets)]
        for row, entry in self._store.scan(self._area.entry + bytes([chunk])):
            removed += [(self._area.value + entry[32:], None), (row, None)]
            if len(removed) > ROWS_AT_ONCE:
                self._store.write_batch(removed, sync=False)
                removed = []
        self._store.write_batch(removed, sync=False)


def abandon(store: Store) -> None:
    """Drop a restore, and what one that was finished or dropped left behind."""
    if store.get(META_RESTORING) is not None:
        store.write_batch(_forgotten(), sync=True)
    remove(store, _other(store).prefixes)


def _forgotten() -> Batch:
    rows: Batch = [(RESTORED + bytes([chunk]), None) for chunk in range(CHUNKS)]
    return [(META_RESTORING, None), *rows]


def _other(store: Store) -> Area:
    return AREAS[1 - AREAS.index(area_of(store))]
