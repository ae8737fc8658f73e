"""Everything on the disk of one node: opened together, checked, closed together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blyand.home import Home
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.commit import GroupCommit
from blyand.store.db import LevelStore, open_store
from blyand.store.intents import IntentLog
from blyand.store.state import State


@dataclass(frozen=True)
class Stores:
    """What is on disk."""

    database: LevelStore
    blocks: BlockStore
    checkpoints: CheckpointStore
    state: State
    blobs: BlobStore
    intents: IntentLog
    commit: GroupCommit
    warnings: tuple[str, ...]


@contextmanager
def open_stores(home: Home) -> Iterator[Stores]:
    """Open what is on disk, repaired as far as it can be. StorageFault."""
    database = open_store(home.database)
    blobs = BlobStore(home.blobs)
    intents = IntentLog(home.intents)
    warnings = []
    try:
        blocks, checkpoints = BlockStore(database), CheckpointStore(database)
        if database.repaired:
            blocks.reindex()
            warnings.append("the database was damaged and repaired; see the log")
        state = State.load(database)
        newest = checkpoints.at(checkpoints.executed_height)
        if newest is not None and state.root != newest.checkpoint.state_root:
            checkpoints.forget_execution()  # DEC-D4: execute again from the genesis
            state = State()
            warnings.append("executed state was lost; it is being executed again")
        if intents.damaged:
            warnings.append("the intent log is damaged; peers are asked before signing")
        commit = GroupCommit(database)
        yield Stores(
            database,
            blocks,
            checkpoints,
            state,
            blobs,
            intents,
            commit,
            tuple(warnings),
        )
    finally:
        intents.close()
        blobs.close()
        database.close()
