"""The steps that lead an older database to the schema of this blyand."""

from __future__ import annotations

from itertools import islice

from blyand.store.blocks import BlockStore
from blyand.store.db import Store
from blyand.store.migrate import Steps
from blyand.store.schema import HEADER, Batch

BLOCKS_AT_ONCE = 500


def write_indexes(store: Store, at: bytes) -> tuple[Batch, bytes | None]:
    """Write every index entry of some blocks: for a version that lacked one of them."""
    writes: Batch = []
    blocks = BlockStore(store)
    some = [key[1:] for key, _ in islice(store.scan(HEADER, start=at), BLOCKS_AT_ONCE)]
    for block in some:
        writes += blocks.index_of(block)
    return writes, some[-1] + b"\0" if len(some) == BLOCKS_AT_ONCE else None


STEPS: Steps = {0: write_indexes}  # 0: of before the first release, without children
