"""Getting back from peers what a damaged database lost (DEC-D3).

A block is known by its id in a checkpoint, a checkpoint by the parent of the next, and
the newest by the state that it gave: so whoever gives a thing is not believed but
checked. What is not executed yet is the follower's business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.blocks import MAX_IDS
from blyand.compute import Threads
from blyand.errors import Damaged, Unavailable
from blyand.rules.chain.intake import check_ordered
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import Store
from blyand.store.mend import Holes, find_holes
from blyand.store.schema import META_HOLES

logger = logging.getLogger(__name__)

AGAIN_S = 2.0  # after peers were asked in vain
PATIENCE_S = 10.0  # for one answer
MAX_FINALS = 16  # checkpoints asked for at once


@dataclass(frozen=True)
class Givers:
    """What mending needs of the network."""

    peers: Callable[[], Sequence[str]]
    checkpoints: Callable[[str, int], Awaitable[Sequence[FinalCheckpoint]]]
    blocks: Callable[[str, Sequence[bytes]], Awaitable[Sequence[Block]]]
    blame: Callable[[str, Exception], None]


class Mender:
    """Asks one peer after the other until nothing is missing."""

    def __init__(
        self,
        store: Store,
        blocks: BlockStore,
        checkpoints: CheckpointStore,
        lane: Threads,
        givers: Givers,
        floor: Callable[[], int] = lambda: 1,
    ) -> None:
        """`floor()`: the height at which history begins here."""
        self._store = store
        self._blocks = blocks
        self._checkpoints = checkpoints
        self._lane = lane
        self._givers = givers
        self._floor = floor
        self.missing: Holes | None = (
            None  # known after the first walk, if there are any
        )

    @property
    def has_holes(self) -> bool:
        """True while something that was here before the damage is not back."""
        return self._store.get(META_HOLES) is not None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Mend what the last repair left; then there is nothing to do."""
        task_status.started()
        while (holes := await self._lane.run(self._look)) is not None:
            self.missing = holes
            came = False
            for peer in self._givers.peers():
                if came := await self._ask(peer, holes):
                    break  # look what is still missing
            if not came:
                logger.info("no peer gives the %s that are missing", holes)
                await trio.sleep(AGAIN_S)
        self.missing = None
        await trio.sleep_forever()

    def _look(self) -> Holes | None:
        """Return what is missing, None for nothing. Blocking."""
        if not self.has_holes:
            return None
        holes = find_holes(self._blocks, self._checkpoints, self._floor())
        if holes.lacks_outcomes:  # of a checkpoint that only came back now
            self._checkpoints.forget_execution()
            self._blocks.drop_unwhole()
            raise Damaged("what came of some blocks is lost; all is executed again")
        if holes:
            return holes
        self._store.write_batch([(META_HOLES, None)], sync=True)
        logger.warning("all that the damaged database lost is back")
        return None

    async def _ask(self, peer: str, holes: Holes) -> bool:
        """Ask a peer for all that is missing; True when something came."""
        heights, blocks, came = list(holes.checkpoints), list(holes.blocks), False
        try:
            while heights or blocks:
                given = 0
                with trio.move_on_after(PATIENCE_S):
                    if heights:
                        given = await self._ask_checkpoints(peer, heights)
                        del heights[:given]
                    else:
                        given = await self._ask_blocks(peer, blocks[:MAX_IDS])
                        del blocks[:MAX_IDS]
                came = came or given > 0
                if not given:
                    break
        except Unavailable as error:
            logger.info("%s does not give what is missing: %s", peer, error)
        except (ProtocolError, Reject) as error:
            self._givers.blame(peer, error)
        return came

    async def _ask_checkpoints(self, peer: str, heights: list[int]) -> int:
        """Fetch some of the highest (they descend), each led to by the one above it."""
        highest, span = heights[0], MAX_FINALS
        while span > 1 and heights[span - 1 : span] != [highest - span + 1]:
            span //= 2
        while span:
            given = await self._givers.checkpoints(peer, highest - span + 1)
            wanted = [one for one in given if one.checkpoint.height <= highest]
            if wanted and wanted[-1].checkpoint.height == highest:
                return await self._link(wanted[::-1])
            span //= 2  # more than one answer holds
        return 0

    async def _link(self, finals: Sequence[FinalCheckpoint]) -> int:
        for final in finals:
            height = final.checkpoint.height
            above = await self._lane.run(self._checkpoints.at, height + 1)
            if above is None or above.checkpoint.parent != final.checkpoint.id:
                raise Reject("a checkpoint that does not lead to the executed one")
            await self._lane.run(self._checkpoints.put, final)
        return len(finals)

    async def _ask_blocks(self, peer: str, wanted: Sequence[bytes]) -> int:
        came = 0
        for block in await self._givers.blocks(peer, wanted):
            if block.id in wanted:
                checked = await self._lane.run(check_ordered, block)
                await self._lane.run(self._blocks.put_back, checked)
                came += 1
        return came
