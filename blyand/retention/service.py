"""Retention in the background: what may go goes, in small steps, all the time (DEC-B9)."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

import trio

from blyan_proto.block.block import Block
from blyand.compute import Threads
from blyand.errors import DiskFull
from blyand.events import Broadcast, CheckpointFinalised
from blyand.retention.duty import Duty
from blyand.retention.pruner import Pruner
from blyand.rules.chain.retention import NAMING, blobs_named, named_by_state
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.store.pins import PinKind

logger = logging.getLogger(__name__)

PAUSE_S = 2.0  # between two looks, unless the window is shorter
LOOK_S = 10.0  # between two looks at all groups that keep old blocks
STOCK_S = 600.0  # between two searches for blobs that nothing names
HURRIED_STOCK_S = 30.0  # the same, while the disk budget is used up
PARTIAL_S = 86_400.0  # a fetch that was left lying for as long is given up
STATE_AT_ONCE = 256  # names taken from the state in one turn of the loop
MAX_LACKING = 4096  # blobs that an archive looks for; the oldest is given up


class Retention:
    """Runs the pruner; on an archive it fetches what becomes final instead."""

    def __init__(
        self,
        pruner: Pruner,
        duty: Duty,
        blobs: BlobStore,
        view: Callable[[], View],
        events: Broadcast,
        lane: Threads,
        span_ms: int,
        want: Callable[[bytes, bytes], None] | None,
    ) -> None:
        """`want(blob, account)` is an archive's: it keeps everything, and gets it."""
        self._pruner = pruner
        self._duty = duty
        self._blobs = blobs
        self._view = view
        self._events = events
        self._lane = lane
        self._want = want
        self._pause_s = min(PAUSE_S, span_ms / 4000)
        self._look_s = min(LOOK_S, span_ms / 1000)
        self._looked_s = self._stocked_s = self._refreshed_s = -1e9
        self._named_after = b""
        self._lacking: OrderedDict[bytes, bytes] = OrderedDict()  # root -> author
        self._hurried = False
        self._wake = trio.Event()

    async def unpinned(self, kind: PinKind, id: bytes) -> None:
        """Judge again what was pinned until now."""
        await self._lane.run(self._pruner.unpinned, kind, id)
        self._looked_s = -1e9
        self._wake.set()

    def make_room(self) -> None:
        """Remove what may go, now; from any thread."""
        self._hurried = True
        self._pruner.make_room()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Prune as chain time goes on. A full disk is waited for."""
        async with trio.open_nursery() as nursery:
            if self._want is not None:
                await nursery.start(self._collect)
            task_status.started()
            while True:
                self._wake = trio.Event()
                try:
                    await self._look()
                except DiskFull as error:
                    logger.warning("nothing is pruned now: %s", error)
                with trio.move_on_after(self._pause_s):
                    await self._wake.wait()

    async def _look(self) -> None:
        """Do all that is to be done now."""
        run = self._lane.run
        while await run(self._pruner.index):
            pass
        now = trio.current_time()
        if now - self._refreshed_s > self._look_s:
            self._refreshed_s = now
            self._duty.refresh()
        if self._want is None:
            while await run(self._pruner.judge):
                pass
            if now - self._looked_s > self._look_s:
                self._looked_s = now
                await run(self._pruner.look_at_groups)
            while await run(self._pruner.release):
                pass
        else:
            found, self._named_after = await run(
                self._pruner.lacking, self._named_after
            )
            for root, account in found.items():  # what it missed while it was off
                self._lacking.setdefault(root, account)
            self._ask()
        after: bytes | None = b""
        while after is not None:
            after = await run(self._pruner.sweep, after)
        hurried = self._hurried
        if now - self._stocked_s > (HURRIED_STOCK_S if hurried else STOCK_S):
            self._stocked_s, self._hurried = now, False
            await self._take_stock(hurried)

    async def _take_stock(self, hurried: bool) -> None:
        """Find what nothing names: left by crashes, or fetched for a question."""
        named: set[bytes] = set()
        for count, root in enumerate(named_by_state(self._view())):
            named.add(root)
            if count % STATE_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        for folder in self._blobs.stock():
            await self._lane.run(self._pruner.find_orphans, folder, named, hurried)
        await self._lane.run(self._blobs.sweep_partials, time.time() - PARTIAL_S)

    async def _collect(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Note the blobs of all that becomes final (role archive)."""
        with self._events.subscribe(CheckpointFinalised, capacity=1024) as facts:
            task_status.started()
            async for fact in facts:
                for block in fact.blocks:
                    self._note(block)

    def _note(self, block: Block) -> None:
        if block.header.kind in NAMING:
            for root in blobs_named(block.content):
                self._lacking[root] = block.header.account

    def _ask(self) -> None:
        """Ask for what is lacking; a want that nobody renews is given up."""
        assert self._want is not None
        while len(self._lacking) > MAX_LACKING:
            self._lacking.popitem(last=False)  # found again by and by
        for root, account in list(self._lacking.items()):
            if self._blobs.bytes_of(root):
                del self._lacking[root]
            else:
                self._want(root, account)
