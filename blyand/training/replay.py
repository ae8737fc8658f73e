"""Getting a group to a version: replay of updates, or else its tiles from a holder.

Every update is recomputed from its base and its deltas, and both roots are compared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileRootsList, TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_tile.layout import Group
from blyand.compute import Threads
from blyand.errors import TooSlow, Unavailable
from blyand.protocols.fetch import Fetcher
from blyand.rules.model import update as rules
from blyand.rules.records import NODES, RUNS
from blyand.rules.records import Group as GroupRecord
from blyand.rules.verdict import Reject
from blyand.store.blobs import BlobStore
from blyand.training import tiles
from blyand.training.trails import Key, Trails, Version
from blyand.training.waiting import Blocks

logger = logging.getLogger(__name__)

MAX_UPDATES = 64  # replayed, before fetching tiles instead


class Replay:
    """Makes versions of groups out of the chain and blobs."""

    def __init__(
        self,
        blocks: Blocks,
        blobs: BlobStore,
        fetcher: Fetcher,
        lane: Threads,
        trails: Trails,
        peer_of: Callable[[bytes], str | None],
    ) -> None:
        self._blocks = blocks
        self._blobs = blobs
        self._fetcher = fetcher
        self._lane = lane
        self._trails = trails
        self._peer_of = peer_of

    async def reach(self, record: GroupRecord, group: Group, key: Key) -> Version:
        """Get to the finalised head: by replay of updates, or by fetching its tiles."""
        head = Version(
            record.head,
            self._parent_of(record.head),
            record.run,
            record.rounds,
            record.tiles,
        )
        if not await self._is_here(record.tiles):
            try:
                await self._replay(record, group, key)
            except (Unavailable, ProtocolError, Reject) as error:
                logger.info("%s: no replay (%s); fetching tiles", group.name, error)
                durable = record.head == record.snapshot
                await self._fetch_tiles(record, group, record.tiles, durable=durable)
        self._trails.append(key, head)
        return head

    async def _replay(self, record: GroupRecord, group: Group, key: Key) -> None:
        """Walk back to a version that is here (or can be fetched), then forward again."""
        path: list[Block] = []
        block = self._blocks.get(record.head)
        while block is not None and isinstance(block.content, TileUpdate):
            path.append(block)
            update: TileUpdate = block.content
            if update.parent == record.snapshot or await self._is_here(update.base):
                break
            if len(path) > MAX_UPDATES:
                raise Reject("too many updates to replay")
            block = self._blocks.get(update.parent)
        if not path:
            raise Reject("no update to replay")
        first: TileUpdate = path[-1].content
        if not await self._is_here(first.base):
            durable = first.parent == record.snapshot
            await self._fetch_tiles(record, group, first.base, durable=durable)
        base = Version(
            first.parent,
            self._parent_of(first.parent),
            first.run if first.round else None,
            first.round,
            first.base,
        )
        self._trails.append(key, base)
        for step in reversed(path[1:]):
            base = await self.applied(step, base, group)
            self._trails.append(key, base)
        await self.applied(path[0], base, group)  # `reach` appends the head

    async def applied(self, block: Block, base: Version, group: Group) -> Version:
        """Compute the version that an update makes; ProtocolError when it lies.

        Unavailable when its deltas do not come in time. The caller adds it to `trails`.
        """
        update: TileUpdate = block.content
        run = self._run_of(update.run)
        if update.blob is not None:
            hint = self._peer_of(block.header.account)
            listed = sum(part.bytes for part in update.contributions)
            with trio.move_on_after(run.deadline_ms / 1000) as patience:
                await self._fetcher.get(
                    update.blob, [hint] if hint else [], most_bytes=listed
                )
            if patience.cancelled_caught:  # what came so far stays
                raise TooSlow("its deltas did not come in time")
        result = await self._lane.run(self._compute, group, base.tiles, update, run)
        if result != update.result:
            raise ProtocolError("its result roots are not those computed here")
        return Version(block.id, base.block, update.run, update.round + 1, result)

    def _compute(
        self, group: Group, base: TileRootsList, update: TileUpdate, run: Run
    ) -> TileRootsList:
        parts = tiles.parts_of(self._blobs, update)
        return tiles.advance(self._blobs, group, base, parts, run)

    def _run_of(self, id: bytes) -> Run:
        record = RUNS.get(self._blocks.view(), id)
        if record is None:
            raise Reject("unknown run")
        return record.run

    def _parent_of(self, block: bytes) -> bytes | None:
        made = self._blocks.get(block)
        if made is None or not isinstance(made.content, TileUpdate):
            return None
        return made.content.parent

    async def _fetch_tiles(
        self,
        record: GroupRecord,
        group: Group,
        roots: TileRootsList,
        *,
        durable: bool,
    ) -> None:
        """Fetch a version; only a snapshot's tiles are durable (DEC-B3, B4)."""
        hints = self.holders(record.model, record.group)
        for tile, root in zip(group.tiles, roots, strict=True):
            most = 4 * math.prod(tile.shape)
            for blob in (root.weights, root.momentum):
                if blob is not None:
                    await self._fetcher.get(
                        blob, hints, most_bytes=most, durable=durable
                    )

    def holders(self, model: bytes, group: int) -> Sequence[str]:
        """Return the peers whose heartbeat says that they hold a group."""
        peers = (
            self._peer_of(node.account)
            for node in NODES.scan(self._blocks.view())
            if node.model == model and group in rules.held_by(node)
        )
        return [peer for peer in peers if peer]

    async def _is_here(self, roots: TileRootsList) -> bool:
        """True when all tiles are on the disk; the first look at one may hash it."""
        every = [root for tile in roots for root in (tile.weights, tile.momentum)]
        return await self._lane.run(
            lambda: all(self._blobs.has(root) for root in every if root is not None)
        )
