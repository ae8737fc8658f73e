"""Taking a false update back: the group's head returns to the last good version (DEC-A5).

What stands on the update goes with it: the group's later rounds of the run. They count
as rounds in which nobody contributed to the group; other groups stay where they are.
"""

from __future__ import annotations

from dataclasses import replace

from blyand.rules.model import compaction
from blyand.rules.model.model import heads_root, require_model
from blyand.rules.model.schedule import write_schedule
from blyand.rules.records import (
    CLOCK,
    GROUPS,
    MODELS,
    RUNS,
    SCHEDULES,
    VERSIONS,
    Group,
    Version,
)
from blyand.rules.view import Overlay


def void(
    view: Overlay, model: bytes, run: bytes, round: int, index: int, liveness_ms: int
) -> None:
    """Void the update of one group and round, which state remembers, of its last run."""
    false = VERSIONS.get(view, run, round, index)
    group = GROUPS.get(view, model, index)
    assert false is not None and group is not None and group.run == run
    updates, listed = compaction.after(view, group, round - 1)
    gone = _void_rounds(view, group, round, false)
    clock = CLOCK.get(view)
    assert clock is not None
    group = replace(
        group,
        head=false.parent,
        tiles=false.base,
        moved_ms=clock.time_ms,
        median=false.median,
        updates=max(0, group.updates - updates),
        delta_bytes=max(0, group.delta_bytes - listed),
    )
    if group.snapshot in gone:
        earlier = group.earlier_snapshot
        # what lies between is not counted any more: long enough to be superseded soon
        since = compaction.LONGEST + 1
        if earlier is None or earlier in gone:
            earlier = false.parent  # holders make it durable when they go back to it
            since = 0
        group = replace(
            group,
            snapshot=earlier,
            earlier_snapshot=None,
            updates=since,
            delta_bytes=0,
        )
    is_adopted = group.adopted_head in gone
    if is_adopted:
        group = replace(group, adopted=false.base, adopted_head=false.parent)
    GROUPS.put(view, group, model, index)
    record = require_model(view, model)
    if is_adopted:
        heads = [one.adopted for one in GROUPS.scan(view, model)]
        height = clock.height
        record = replace(record, heads_root=heads_root(heads), adopted_height=height)
        MODELS.put(view, record, model)
    if record.run is not None:
        _begin_anew(view, record.run, liveness_ms)


def _void_rounds(view: Overlay, group: Group, first: int, false: Version) -> set[bytes]:
    """Let the rounds from `first` on have changed nothing; return their updates."""
    assert group.run is not None
    gone = set()
    for round in range(first, group.rounds):
        known = VERSIONS.get(view, group.run, round, group.group)
        if known is not None:
            gone.add(known.update)
            standing = Version(
                update=false.parent,
                tiles=false.base,
                parent=false.parent,
                base=false.base,
                signers=(),
                median=false.median,
            )
            VERSIONS.put(view, standing, group.run, round, group.group)
    return gone


def _begin_anew(view: Overlay, run: bytes, liveness_ms: int) -> None:
    """Write the open rounds' schedules anew, under a new lease epoch.

    Ranks promised heads that stand on what is gone; they promise once for each lease.
    """
    record = RUNS.get(view, run)
    assert record is not None
    for round in range(record.closed, record.closed + record.run.rounds_ahead + 1):
        if SCHEDULES.get(view, run, round) is not None:
            write_schedule(view, record, round, liveness_ms)
