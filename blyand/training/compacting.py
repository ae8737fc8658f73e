"""Making snapshots where chains of updates grew long, heavy, or slow to load.

It looks at finalised state only, so a delta that arrives meanwhile stands on the
snapshot: the block names the version, and whatever came after it stays in the chain.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.header import NO_LAYER
from blyan_proto.block.model import Snapshot
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_tile.layout import Layout
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.model import compaction
from blyand.rules.model.election import ranks
from blyand.rules.model.model import layout_for
from blyand.rules.model.places import open_runs
from blyand.rules.model.schedule import next_round
from blyand.rules.records import GROUPS, MODELS, SCHEDULES, Group, RunRecord
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

PATIENCE = 8  # checkpoints until a snapshot that did not come is made again

Key = tuple[bytes, int]  # model, group


class Compactor:
    """Makes the snapshots of groups whose next primary this node is."""

    def __init__(
        self,
        account: bytes,
        view: Callable[[], View],
        make: Callable[..., Awaitable[Block]],
        lane: Threads,
        events: Broadcast,
        is_slow: Callable[[bytes, int], bool],
    ) -> None:
        """`is_slow(model, group)`: loading it took too long on this node."""
        self._account = account
        self._view = view
        self._make = make
        self._lane = lane
        self._events = events
        self._is_slow = is_slow
        self._made: dict[Key, tuple[bytes, int]] = {}  # snapshot then, checkpoint

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at the groups of open runs after each checkpoint."""
        with self._events.subscribe(CheckpointFinalised) as facts:
            task_status.started()
            async for fact in facts:
                height = fact.final.checkpoint.height
                due = await self._lane.run(self._due, self._view(), height)
                for layout, group in due:
                    await self._compact(layout, group, height)

    def _due(self, view: View, height: int) -> list[tuple[Layout, Group]]:
        """Return the groups that this node is to compact. Blocking."""
        found = []
        for record in list(open_runs(view)):
            model = MODELS.get(view, record.run.model)
            if record.run.snapshot_every or model is None:
                continue
            layout = layout_for(model.model)
            found += [
                (layout, group)
                for group in GROUPS.scan(view, model.id)
                if group.run == record.id
                and self._is_due(view, group)
                and self._is_ours(view, record, group)
                and self._is_new(group, height)
            ]
        return found

    def _is_due(self, view: View, group: Group) -> bool:
        if not group.updates:
            return False
        whole = compaction.tile_bytes(view, group)
        if compaction.is_due(group.updates, group.delta_bytes, whole):
            return True
        is_slow = self._is_slow(group.model, group.group)
        return is_slow and group.updates >= compaction.LEAST

    def _is_ours(self, view: View, record: RunRecord, group: Group) -> bool:
        """True when this node leads the group in the next round that is scheduled."""
        round = next_round(group, record.id)
        schedule = SCHEDULES.get(view, record.id, min(round, record.run.rounds - 1))
        leaders = ranks(schedule, group.group)[:1] if schedule else ()
        return any(seat.account == self._account for seat in leaders)

    def _is_new(self, group: Group, height: int) -> bool:
        before = self._made.get((group.model, group.group))
        if before is None:
            return True
        snapshot, then = before
        return group.snapshot != snapshot or height >= then + PATIENCE

    async def _compact(self, layout: Layout, group: Group, height: int) -> None:
        named = layout.groups[group.group]
        self._made[group.model, group.group] = group.snapshot, height
        try:
            await self._make(
                Snapshot(
                    version=FORMAT_VERSION,
                    model=group.model,
                    group=group.group,
                    update=group.head,
                    round=group.rounds - 1,
                    tiles=group.tiles,
                ),
                subject=named.name,
                layer=NO_LAYER if named.layer is None else named.layer,
                meta_ref=group.model,
            )
        except (Ignore, Reject, Unavailable, ProtocolError) as error:
            logger.info("no snapshot of %s now: %s", named.name, error)
