"""Giving up pending blocks that no checkpoint took in time (DEC-A1)."""

from __future__ import annotations

import logging

from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.compute import Threads
from blyand.errors import DiskFull
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)


class Expiry:
    """Drops blocks whose anchor is older than the expiry span, and their children.

    Ages are spans of median chain time. An anchor ahead of this node is taken for the
    checkpoint at which it was first looked at, so that no block waits for ever.
    """

    def __init__(
        self, machine: Machine, blocks: BlockStore, pool: Pool, lane: Threads
    ) -> None:
        self._machine = machine
        self._blocks = blocks
        self._pool = pool
        self._lane = lane
        self._span_ms = machine.genesis.parameters.expiry_span_ms
        self._swept_ms = 0

    async def sweep(self) -> None:
        """Drop what is too old, and clear the disk of what the pool dropped.

        Not while a checkpoint is executed: the blocks that it orders must stay.
        """
        if self._machine.clock.time_ms - self._swept_ms > self._span_ms // 64:
            self._swept_ms = self._machine.clock.time_ms
            await self._drop_old()
        dropped = self._pool.take_dropped()
        if dropped:
            logger.info("%d pending blocks given up", len(dropped))
            try:
                await self._lane.run(self._blocks.expire, dropped)
            except DiskFull as error:  # they are dropped again after the next start
                logger.info("they stay on the disk: %s", error)

    async def _drop_old(self) -> None:
        entries = [one for one in self._pool.entries() if one.anchor_ms is None]
        heights = {one.block.header.anchor_height for one in entries}
        times = await self._lane.run(self._machine.times_at, heights)
        now_ms = self._machine.clock.time_ms
        for one in entries:
            one.anchor_ms = times.get(one.block.header.anchor_height, now_ms)
        self._pool.drop(
            one.id
            for one in self._pool.entries()
            if one.anchor_ms is not None and now_ms - one.anchor_ms > self._span_ms
        )
