"""Looking at what learners send over the rounds, to turn away who pulls against the others.

Whoever holds a group sees the deltas of its updates; a rank sees those that it turned
away besides, so that nobody is turned away for ever. It is the primary's judgement of
membership (DEC-B5): no state depends on it, and nobody else has to share it.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection

import numpy as np
import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_tile import delta as deltas
from blyan_tile import overlap
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import Broadcast, HeadMoved
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import RUNS
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.training import tiles
from blyand.training.membership import Taken
from blyand.training.opposition import Opposition

logger = logging.getLogger(__name__)

MAX_ASIDE = 512  # groups and rounds whose deltas were turned away; 8 KiB a delta
MAX_SEEN = 4096  # updates

Key = tuple[bytes, int, int]  # run, round, group


class Watcher:
    """Keeps what this node saw of the learners of its runs."""

    def __init__(
        self,
        view: Callable[[], View],
        block: Callable[[bytes], Block | None],
        blobs: BlobStore,
        lane: Threads,
        events: Broadcast,
    ) -> None:
        """`block(id)`: an update that this node holds whole."""
        self.secret = os.urandom(32)  # of the sketches that deltas are compared by
        self._view = view
        self._block = block
        self._blobs = blobs
        self._lane = lane
        self._events = events
        self._opposition = Opposition()
        self._aside: OrderedDict[Key, dict[bytes, np.ndarray]] = OrderedDict()
        self._seen: OrderedDict[bytes, None] = OrderedDict()  # updates

    def turns_away(self, key: Key, taken: Taken, voices: Collection[bytes]) -> bool:
        """True when a delta's learner pulls against more than half of `voices`."""
        learner = taken.delta.learner
        if not self._opposition.is_against(key[0], learner, voices):
            return False
        if taken.sketch is not None:
            self._aside.setdefault(key, {})[learner] = taken.sketch
            while len(self._aside) > MAX_ASIDE:
                self._aside.popitem(last=False)
        return True

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at the deltas of each update that moved a head here."""
        with self._events.subscribe(HeadMoved) as moves:
            task_status.started()
            async for move in moves:
                block = self._block(move.update)
                update = block.content if block else None
                if isinstance(update, TileUpdate) and move.update not in self._seen:
                    self._seen[move.update] = None
                    while len(self._seen) > MAX_SEEN:
                        self._seen.popitem(last=False)
                    await self._look_at(update)

    async def _look_at(self, update: TileUpdate) -> None:
        try:
            seen = await self._lane.run(self._sketches, self._view(), update)
        except (Unavailable, ProtocolError) as error:
            logger.debug("the deltas of an update were not looked at: %s", error)
            return
        aside = self._aside.pop((update.run, update.round, update.group), {})
        self._opposition.note(update.run, aside | seen)

    def _sketches(self, view: View, update: TileUpdate) -> dict[bytes, np.ndarray]:
        """Return a sketch of each delta that an update lists. Blocking."""
        record = RUNS.get(view, update.run)
        if record is None or len(update.contributions) < 2:
            return {}
        layout = layout_for(require_model(view, update.model).model)
        group = layout.groups[update.group]
        parts = tiles.parts_of(self._blobs, update, group, record.run)
        found = {}
        for entry, part in zip(update.contributions, parts):
            values = deltas.decode_group(group, part.tiles)
            sketch = overlap.sketch(values, self.secret)
            if sketch is not None:
                found[entry.learner] = sketch
        return found
