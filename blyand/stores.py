"""Everything on the disk of one node: opened together, checked, closed together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blyand.home import Home
from blyand.store.blobs import BlobStore
from blyand.store.blocks import BlockStore
from blyand.store.buckets import area_of, entries_agree, write_entries
from blyand.store.budget import Budget
from blyand.store.checkpoints import CheckpointStore
from blyand.store.commit import GroupCommit
from blyand.store.db import LevelStore, open_store
from blyand.store.history import History
from blyand.store.intents import IntentLog
from blyand.store.locks import LockStore
from blyand.store.mend import find_holes, name_holes
from blyand.store.migrations import STEPS
from blyand.store.pins import Pins
from blyand.store.restore import abandon
from blyand.store.retained import Retained
from blyand.store.rounds import Rounds
from blyand.store.schema import META_HOLES, META_RESTORING
from blyand.store.sets import SetStore
from blyand.store.state import State
from blyand.store.statements import Statements

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stores:
    """What is on disk."""

    database: LevelStore
    blocks: BlockStore
    checkpoints: CheckpointStore
    history: History
    sets: SetStore
    locks: LockStore
    state: State
    statements: Statements
    blobs: BlobStore
    intents: IntentLog
    commit: GroupCommit
    retained: Retained
    pins: Pins
    budget: Budget
    rounds: Rounds
    warnings: tuple[str, ...]


@contextmanager
def open_stores(home: Home, limit_bytes: int | None = None) -> Iterator[Stores]:
    """Open what is on disk, repaired as far as it can be. StorageFault, DiskFull.

    `limit_bytes` bounds what the home may take; None: the disk does.
    """
    database = open_store(home.database, STEPS)
    try:
        retained, budget = Retained(database), Budget(limit_bytes, home.path)
        blobs = BlobStore(home.blobs, gone_since=retained.gone_since, budget=budget)
        try:
            intents = IntentLog(home.intents)
            try:
                yield _stores(database, blobs, intents, retained, budget)
            finally:
                intents.close()
        finally:
            blobs.close()
    finally:
        database.close()


def _stores(
    database: LevelStore,
    blobs: BlobStore,
    intents: IntentLog,
    retained: Retained,
    budget: Budget,
) -> Stores:
    """Return the stores, indexed and executed as far as the database is whole."""
    warnings = []
    blocks, checkpoints = BlockStore(database), CheckpointStore(database)
    statements = Statements(database)
    history = History(database, checkpoints, blocks)
    if database.repaired:
        blocks.reindex()
    if database.repaired or database.get(META_RESTORING) is None:
        abandon(database)  # what a restore replaced; or the restore, if it has holes
    state = State.load(database)
    is_executed = _is_executed(database, state, checkpoints)
    if database.repaired:
        holes = find_holes(blocks, checkpoints, history.floor.blocks)
        name_holes(holes)
        is_executed = is_executed and not holes.lacks_outcomes
        warnings.append("the database was damaged and repaired; look at the disk")
        database.write_batch([(META_HOLES, b"")], sync=True)
    if not is_executed:
        checkpoints.forget_execution()  # DEC-D4: execute again from the genesis
        statements.forget()
        if history.is_whole:
            blocks.drop_unwhole()  # they are needed, so they are fetched
        state.reload()
    if not is_executed and checkpoints.latest() is not None:
        warnings.append("executed state was lost; it is being executed again")
    if database.repaired:
        database.mended()
    if intents.damaged:
        warnings.append("the intent log is damaged; peers are asked before signing")
    for warning in warnings:
        logger.warning("%s", warning)
    return Stores(
        database,
        blocks,
        checkpoints,
        history,
        SetStore(database),
        LockStore(database),
        state,
        statements,
        blobs,
        intents,
        GroupCommit(database),
        retained,
        Pins(database),
        budget,
        Rounds(database),
        tuple(warnings),
    )


def _is_executed(
    database: LevelStore, state: State, checkpoints: CheckpointStore
) -> bool:
    """True when the stored state is the one of the checkpoint that it says it is after.

    Its hashes count after a stop in order only; else, or when they are wrong, they are
    made again from the values (DEC-D4). Before the first checkpoint nobody here can
    tell; the genesis is quickly made anew.
    """
    height = checkpoints.executed_height
    newest = checkpoints.at(height) if height else None
    if newest is None:
        return False
    wanted, is_trusted = newest.checkpoint.state_root, database.was_clean
    if is_trusted and not database.repaired and state.root == wanted:
        return True
    logger.info("the state is checked: %d keys", len(state))
    if checkpoints.stored_state_root() != (height, wanted):
        return False
    if not entries_agree(database, wanted):
        logger.warning("the hashes of the state were wrong and are made anew")
        write_entries(database, area_of(database))
        state.reload()
    return True
