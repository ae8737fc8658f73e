"""Where validator sets change hands, by height (DEC-A11); the sets are `sets`'.

Written together with the checkpoint, so that any later newcomer can be led from the
genesis, or from what it trusts, to the set of now.
"""

from __future__ import annotations

from collections.abc import Callable

from blyan_proto.checkpoint import Checkpoint, FinalCheckpoint
from blyand.store.db import Store
from blyand.store.schema import HANDOVER, Batch, u64


def rows(checkpoint: Checkpoint) -> Batch:
    """Return the rows that note a hand-over; none for most checkpoints."""
    if checkpoint.validators_root == checkpoint.next_validators_root:
        return []
    return [(HANDOVER + u64(checkpoint.height), b"")]


def from_height(
    store: Store,
    at: Callable[[int], FinalCheckpoint | None],
    height: int,
    count: int,
) -> tuple[FinalCheckpoint, ...]:
    """Return at most `count` hand-overs from a height upwards. Blocking."""
    found: list[FinalCheckpoint] = []
    for row, _ in store.scan(HANDOVER, start=u64(height)):
        final = at(int.from_bytes(row[1:], "big"))
        if final is None or len(found) >= count:
            break
        found.append(final)
    return tuple(found)
