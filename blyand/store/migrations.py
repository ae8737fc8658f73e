"""The steps that lead an older database to the schema of this blyand."""

from __future__ import annotations

from itertools import islice

from blyand.errors import StorageFault
from blyand.store.blocks import BlockStore
from blyand.store.db import Store
from blyand.store.migrate import Steps
from blyand.store.schema import CHECKPOINT, EXECUTED, HEADER, Batch

BLOCKS_AT_ONCE = 500


def write_indexes(store: Store, at: bytes) -> tuple[Batch, bytes | None]:
    """Write every index entry of some blocks: for a version that lacked one of them."""
    writes: Batch = []
    blocks = BlockStore(store)
    some = [key[1:] for key, _ in islice(store.scan(HEADER, start=at), BLOCKS_AT_ONCE)]
    for block in some:
        writes += blocks.index_of(block)
    return writes, some[-1] + b"\0" if len(some) == BLOCKS_AT_ONCE else None


def drop_old_state(store: Store, at: bytes) -> tuple[Batch, bytes | None]:
    """Drop the state of a database that executed nothing yet: the genesis is made anew.

    Checkpoints of schema 1 name state roots of another tree, which cannot come out again.
    """
    if any(True for _ in store.scan(CHECKPOINT)):
        raise StorageFault(
            "this home is of a network before state trees, whose checkpoints cannot be "
            "executed any more: begin with a new home, or run the blyand that wrote it"
        )
    return [(row, None) for row, _ in store.scan(EXECUTED)], None


# 0: of before the first release, without children; 1: without the rows of a state tree
STEPS: Steps = {0: write_indexes, 1: drop_old_state}
