"""Saying so when a final update is false: this node computed another result (DEC-A5)."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Dispute
from blyan_proto.block.model import TileRootsList, TileUpdate
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.model.dispute import DISPUTES
from blyand.rules.records import VERSIONS
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

MAX_DOUBTS = 256
AGAIN_S = 5.0  # until a dispute that did not come to be is made again


class Doubting:
    """Disputes what the holder found to be false, once a checkpoint let it take effect."""

    def __init__(
        self,
        view: Callable[[], View],
        is_pending: Callable[[bytes], bool],
        make: Callable[..., Awaitable[object]],
        events: Broadcast,
    ) -> None:
        self._view = view
        self._is_pending = is_pending
        self._make = make
        self._events = events
        self._doubts: OrderedDict[bytes, tuple[TileUpdate, TileRootsList]]
        self._doubts = OrderedDict()
        self._said: dict[bytes, float] = {}  # update -> trio time

    def note(self, block: Block, computed: TileRootsList) -> None:
        """This node computed another result than an update claims."""
        self._doubts[block.id] = (block.content, computed)
        while len(self._doubts) > MAX_DOUBTS:
            gone, _ = self._doubts.popitem(last=False)
            self._said.pop(gone, None)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Dispute what takes effect and is doubted."""
        with self._events.subscribe(CheckpointFinalised) as facts:
            task_status.started()
            async for _ in facts:
                for id, (update, computed) in list(self._doubts.items()):
                    await self._look_at(id, update, computed)

    async def _look_at(
        self, id: bytes, update: TileUpdate, computed: TileRootsList
    ) -> None:
        view = self._view()
        version = VERSIONS.get(view, update.run, update.round, update.group)
        if version is None or version.update != id:
            if not self._is_pending(id):  # without effect, void, or long ago
                self._doubts.pop(id, None)
                self._said.pop(id, None)
            return
        now = trio.current_time()
        is_said = now - self._said.get(id, -AGAIN_S) < AGAIN_S
        if is_said or DISPUTES.get(view, id) is not None:
            return
        self._said[id] = now
        tile = next(
            index
            for index, (ours, theirs) in enumerate(zip(computed, update.result))
            if ours != theirs
        )
        logger.warning(
            "update %s of round %d is false: disputed", id.hex()[:16], update.round
        )
        try:
            await self._make(
                Dispute(
                    version=FORMAT_VERSION,
                    run=update.run,
                    group=update.group,
                    round=update.round,
                    update=id,
                    tile=tile,
                    computed=computed[tile],
                )
            )
        except (Ignore, Reject, Unavailable, ProtocolError) as error:
            logger.warning("not disputed now: %s", error)
