"""When a chain of updates is superseded by a snapshot: exact, and the history stays.

A snapshot is the version itself, computed by everybody; nothing is pruned or quantised
(HZ-97). Of runs with a fixed interval, that decides; of the others, need does.
"""

from __future__ import annotations

from blyan_proto.block.model import Run, TileUpdate
from blyan_proto.constants import PPM
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import RUNS, VERSIONS, Group
from blyand.rules.verdict import Reject
from blyand.rules.view import View

LONGEST = 10  # updates; a longer chain is superseded (COMPACT-01)
SHARE_PPM = PPM // 2  # of the tiles' bytes; heavier deltas are superseded
LEAST = 4  # updates, for whom a load took too long here: a hint, no duty
FLOAT32_BYTES = 4


def listed_bytes(update: TileUpdate) -> int:
    """Return the bytes of the deltas that an update lists."""
    return sum(part.bytes for part in update.contributions)


def is_due(updates: int, delta_bytes: int, whole_bytes: int) -> bool:
    """True when so many updates since a group's snapshot are to be superseded."""
    return updates > LONGEST or delta_bytes * PPM > whole_bytes * SHARE_PPM


def is_allowed(updates: int, delta_bytes: int, whole_bytes: int) -> bool:
    """True when a snapshot over so many updates takes effect: need, or somebody's hint."""
    return updates >= LEAST or is_due(updates, delta_bytes, whole_bytes)


def tile_bytes(view: View, group: Group) -> int:
    """Return the bytes of a group's weights in float32."""
    layout = layout_for(require_model(view, group.model).model)
    return FLOAT32_BYTES * layout.groups[group.group].elements


def after(view: View, group: Group, round: int) -> tuple[int, int]:
    """Return the updates of the group's run behind a round, and their deltas' bytes."""
    assert group.run is not None
    later = (
        VERSIONS.get(view, group.run, one, group.group)
        for one in range(round + 1, group.rounds)
    )
    made = [one for one in later if one is not None and one.update != one.parent]
    return len(made), sum(one.delta_bytes for one in made)


def check_need(view: View, group: Group, updates: int, delta_bytes: int) -> None:
    """Reject a snapshot that supersedes too little, where the run sets no interval."""
    assert group.run is not None
    record = RUNS.get(view, group.run)
    run: Run | None = record.run if record else None
    if run is None or run.snapshot_every:
        return
    if not is_allowed(updates, delta_bytes, tile_bytes(view, group)):
        raise Reject(f"only {updates} updates since the group's snapshot")
