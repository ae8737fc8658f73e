"""Getting a group to a version: replay of updates, or else its tiles from a holder.

Every update is recomputed from its base and its deltas, and both roots are compared.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileRootsList, TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_tile.layout import Group
from blyan_tile.tokenizer import MAX_COMPANIONS_BYTES
from blyand.compute import Threads
from blyand.errors import TooSlow, Unavailable
from blyand.protocols.fetch import Fetcher
from blyand.rules.model import update as rules
from blyand.rules.records import MODELS, NODES, RUNS
from blyand.rules.records import Group as GroupRecord
from blyand.rules.verdict import Reject
from blyand.store.blobs import BlobStore
from blyand.training import tiles
from blyand.training.trails import Key, Trails, Version
from blyand.training.waiting import Blocks

logger = logging.getLogger(__name__)

MAX_RESULTS = 256  # updates whose results are known to be right
LOAD_MS = 50  # a load by replay that takes longer asks for a snapshot (COMPACT-01)
MAX_UPDATES = 64  # replayed, before fetching tiles instead


Bring = Callable[[TileUpdate, bytes], Awaitable[None]]
Work = tuple[bytes, int, bytes, bytes]  # run, group, base, contributions


class FalseResult(ProtocolError):
    """An update claims another result than its base and its deltas give.

    Peer scoring: whoever signed it pays, by a dispute (DEC-A5).
    """

    def __init__(self, computed: TileRootsList) -> None:
        super().__init__("its result roots are not those computed here")
        self.computed = computed


class Replay:
    """Makes versions of groups out of the chain and blobs."""

    def __init__(
        self,
        blocks: Blocks,
        blobs: BlobStore,
        fetcher: Fetcher,
        bring: Bring,
        lane: Threads,
        trails: Trails,
        peer_of: Callable[[bytes], str | None],
        doubt: Callable[[Block, TileRootsList], None],
    ) -> None:
        """`bring(update, author)` gets an update's deltas; `doubt(block, computed)`: it
        claims another result than computed here."""
        self._bring = bring
        self._blocks = blocks
        self._blobs = blobs
        self._fetcher = fetcher
        self._lane = lane
        self._trails = trails
        self._peer_of = peer_of
        self._doubt = doubt
        self.slow: set[Key] = set()  # groups whose last load took longer than LOAD_MS
        self._results: OrderedDict[Work, TileRootsList] = OrderedDict()

    async def reach(self, record: GroupRecord, group: Group, key: Key) -> Version:
        """Get to the finalised head: by replay of updates, or by fetching its tiles."""
        head = Version(
            record.head,
            self._parent_of(record.head),
            record.run,
            record.rounds,
            record.tiles,
            record.median,
        )
        if not await self._is_here(record.tiles):
            began = trio.current_time()
            try:
                await self._replay(record, group, key)
                took_ms = (trio.current_time() - began) * 1000
                (self.slow.add if took_ms > LOAD_MS else self.slow.discard)(key)
            except (Unavailable, ProtocolError, Reject) as error:
                logger.info("%s: no replay (%s); fetching tiles", group.name, error)
                durable = record.head == record.snapshot
                await self._fetch_tiles(record, group, record.tiles, durable=durable)
        self._trails.append(key, head)
        return head

    async def have_companions(self, model: bytes) -> None:
        """Have the files that came with the weights: whoever runs a trunk needs them."""
        record = MODELS.get(self._blocks.view(), model)
        root = record.model.companions if record else None
        if root is not None:
            hints = self.holders(model, 0)
            await self._fetcher.get(root, hints, most_bytes=MAX_COMPANIONS_BYTES)

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
            self._median_of(first.parent),
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
        try:
            result = await self.recompute(
                update, block.header.account, base.tiles, group
            )
        except FalseResult as error:
            self._doubt(block, error.computed)
            raise
        rounds = update.round + 1
        return Version(block.id, base.block, update.run, rounds, result, update.median)

    async def recompute(
        self, update: TileUpdate, author: bytes, base: TileRootsList, group: Group
    ) -> TileRootsList:
        """Compute what an update makes of `base`; FalseResult when it lies.

        `author`: the account whose node is asked for the deltas first. What was
        computed before, and is still here, is not computed again.
        """
        run = self._run_of(update.run)
        known = self._results.get(_work(update))
        if known == update.result and await self._is_here(known):
            return known
        if update.blob is not None:
            with trio.move_on_after(run.deadline_ms / 1000) as patience:
                await self._bring(update, author)
            if patience.cancelled_caught:  # what came so far stays
                raise TooSlow("its deltas did not come in time")
        result = await self._lane.run(self._compute, group, base, update, run)
        if result != update.result:
            self._trails.spare(_roots(result) - _roots(base))
            raise FalseResult(result)
        self.remember(update)
        return result

    def remember(self, update: TileUpdate) -> None:
        """Keep in mind that this node computed the update's result itself."""
        self._results[_work(update)] = update.result
        while len(self._results) > MAX_RESULTS:
            _, tiles = self._results.popitem(last=False)
            self._trails.spare(_roots(tiles))

    async def is_right(self, block: Block, record: GroupRecord, group: Group) -> bool:
        """Recompute a final update, whoever holds its group. Unavailable: not possible."""
        update: TileUpdate = block.content
        is_new = not await self._is_here(update.base)
        if is_new:
            await self._fetch_tiles(record, group, update.base, durable=False)
        try:
            await self.recompute(update, block.header.account, update.base, group)
        except ProtocolError as error:
            logger.info("update %s: %s", block.id.hex()[:16], error)
            return False
        finally:
            if is_new:
                self._trails.spare(_roots(update.base))
        return True

    def _compute(
        self, group: Group, base: TileRootsList, update: TileUpdate, run: Run
    ) -> TileRootsList:
        """Return what an update's deltas make of `base`: nothing, if they are not those
        that it lists."""
        try:
            parts = tiles.parts_of(self._blobs, update, group, run)
        except ProtocolError as error:
            logger.warning(
                "an update of %s lists what is not so: %s", group.name, error
            )
            return base
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

    def _median_of(self, block: bytes) -> int:
        made = self._blocks.get(block)
        is_update = made is not None and isinstance(made.content, TileUpdate)
        return made.content.median if made is not None and is_update else 0

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


def _roots(tiles: TileRootsList) -> set[bytes]:
    every = (root for tile in tiles for root in (tile.weights, tile.momentum))
    return {root for root in every if root is not None}


def _work(update: TileUpdate) -> Work:
    """Return what a result is computed from; parent and rank take no part in it."""
    claim = update.claim
    return (claim.run, claim.group, claim.base, claim.contributions)
