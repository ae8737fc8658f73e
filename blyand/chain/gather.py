"""The blocks of the checkpoints that come next: fetched in parallel, taken in in order.

The ids of checkpoints that are known but not applied form a queue, as far as a window
reaches. The swarm fetches whatever of it is not here; from its front, blocks enter the
store. A checkpoint's order puts parents before children, so no block is an orphan.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.constants import MIB
from blyand.chain.intake import Intake
from blyand.chain.pool import Pool
from blyand.chain.swarm import Swarm
from blyand.compute import Threads
from blyand.errors import DiskFull, Unavailable
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)

WINDOW_BLOCKS = 4096  # fetched ahead of the newest applied checkpoint, well below
WINDOW_BYTES = 48 * MIB  # while unordered blocks take more, none are fetched ahead
BATCH = 256  # taken in at once
IDLE_S = 1.0

Waiting = Callable[[int], tuple[FinalCheckpoint, str] | None]


class Missing(Unavailable):
    """Blocks of a checkpoint are not here yet."""

    def __init__(self, ids: Sequence[bytes]) -> None:
        super().__init__(f"{len(ids)} blocks are not here")
        self.ids = ids


class Gatherer:
    """Brings in the blocks of checkpoints that wait to be applied."""

    def __init__(
        self,
        blocks: BlockStore,
        pool: Pool,
        intake: Intake,
        lane: Threads,
        swarm: Swarm,
        applied: Callable[[], int],
        waiting: Waiting,
        stored: Callable[[], None],
    ) -> None:
        """`applied` is the newest applied height; `waiting` gives the checkpoint of a
        height and who showed it; `stored` hears that blocks were stored."""
        self._blocks = blocks
        self._pool = pool
        self._intake = intake
        self._lane = lane
        self._swarm = swarm
        self._applied = applied
        self._waiting = waiting
        self._stored = stored
        self._queue: OrderedDict[bytes, None] = OrderedDict()  # not here, next first
        self._taking: set[bytes] = set()
        self._upto = 0  # height up to which the queue was filled
        self._ahead: dict[int, int] = {}  # height -> blocks, above the applied one

    @property
    def is_idle(self) -> bool:
        """True when no block of a checkpoint that we know of is missing."""
        return not self._queue and not self._taking

    @property
    def stuck(self) -> bytes | None:
        """The next block that is needed, if no connected peer gives it just now."""
        first = next(iter(self._queue), None)
        return first if first and self._swarm.hopeless([first]) else None

    def waits_for(self, ids: Sequence[bytes]) -> bool:
        """True while some of these are known not to be here."""
        return any(id in self._queue or id in self._taking for id in ids)

    def again(self, ids: Sequence[bytes]) -> None:
        """Bring in blocks of the very next checkpoint that are missing after all."""
        lost = [id for id in ids if id not in self._queue and id not in self._taking]
        for id in reversed(lost):
            self._queue[id] = None
            self._queue.move_to_end(id, last=False)
        self._swarm.want(lost)

    def restart(self) -> None:
        """Forget the queue: a checkpoint in it was refused."""
        self._swarm.forget(self._queue)
        self._queue.clear()
        self._ahead.clear()
        self._upto = 0

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the window filled and its front moving."""
        task_status.started()
        while True:
            changed = self._swarm.changed
            await self._fill()
            if await self._take_front():
                self._stored()
                continue
            with trio.move_on_after(IDLE_S):
                await changed.wait()

    async def _fill(self) -> None:
        """Put the ids of further checkpoints into the queue while the window has room."""
        applied = self._applied()
        self._upto = max(self._upto, applied)
        self._ahead = {h: n for h, n in self._ahead.items() if h > applied}
        while (known := self._waiting(self._upto + 1)) is not None:
            ids = known[0].checkpoint.blocks
            ahead = sum(self._ahead.values())
            if ahead and (
                ahead + len(ids) > WINDOW_BLOCKS or self._pool.size_bytes > WINDOW_BYTES
            ):
                break
            height = self._upto + 1
            missing = await self._lane.run(self._absent, ids)
            if self._upto + 1 != height:
                break  # restarted meanwhile
            self._upto, self._ahead[height] = height, len(ids)
            self._queue.update(dict.fromkeys(missing))
            self._swarm.want(missing)

    def _absent(self, ids: Sequence[bytes]) -> list[bytes]:
        return [id for id in ids if not self._blocks.has(id)]

    async def _take_front(self) -> bool:
        """Take in what is at the front of the queue and here; False when it is nothing."""
        batch: dict[bytes, tuple[Block, str]] = {}
        moved = False
        while self._queue and len(batch) < BATCH:
            id = next(iter(self._queue))
            found = self._swarm.look(id)
            if found is not None:
                batch[id] = found
            elif id in self._pool or self._blocks.is_whole(id):  # it came another way
                self._swarm.forget([id])
            else:
                self._swarm.want([id])  # another part may have given it up
                break
            del self._queue[id]
            moved = True
        if batch:
            self._taking = set(batch)
            lost = await take(self._intake, self._swarm, batch, is_final=True)
            self._taking = set()
            self.again(lost)
            if lost:
                await trio.sleep(IDLE_S)
        return moved


async def take(
    intake: Intake,
    swarm: Swarm,
    batch: dict[bytes, tuple[Block, str]],
    *,
    is_final: bool = False,
) -> list[bytes]:
    """Take in fetched blocks (id -> block and giver); return those not stored.

    Whoever gave a block that is false is blamed for it and not asked for it again.
    """
    blocks = [block for block, _ in batch.values()]
    sender = next(iter(batch.values()))[1]
    lost = []
    swarm.take(batch)
    try:
        admissions = await intake.submit_many(blocks, sender, is_final=is_final)
    except DiskFull as error:
        logger.info("%d fetched blocks are not kept: %s", len(batch), error)
        return list(batch)
    finally:
        swarm.forget(batch)
        swarm.poke()
    for one in admissions:
        if one.error is None:
            continue
        peer = batch[one.id][1]
        logger.info("block %s of %s: %s", one.id.hex()[:16], peer, one.error)
        lost.append(one.id)
        if isinstance(one.error, Reject):
            swarm.refuse(peer, one.error)
    return lost
