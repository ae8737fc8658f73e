"""The one way in for a block: check, find its parents, store, tell.

Blocks come by gossip (through `gossip_check`, which must be quick), as answers to our
own requests, and from this node itself; all end in `_admit`. Bounds: the arrival queue
(full: gossip is ignored and comes back by sync), orphans per sender and in all.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block, decode_block, encode_block
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyand.chain.pool import Pool
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import BlockStored, Broadcast
from blyand.net.gossip import Verdict
from blyand.poison import PoisonBox
from blyand.rules.chain.intake import Checked, check
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore
from blyand.store.commit import GroupCommit
from blyand.store.schema import Arrival

logger = logging.getLogger(__name__)

QUEUE = 1024
WORKERS = 4
MAX_ORPHANS = 1024
MAX_ORPHANS_PER_PEER = 256
MAX_ANCESTRY = 4096  # blocks fetched to connect one orphan

FetchBlocks = Callable[[str, Sequence[bytes]], Awaitable[Sequence[Block]]]


@dataclass(frozen=True)
class Sources:
    """What intake needs of the network."""

    fetch: FetchBlocks
    blame: Callable[[str, Exception], None]


class Intake:
    """Admits blocks, each once."""

    def __init__(
        self,
        genesis: Genesis,
        blocks: BlockStore,
        commit: GroupCommit,
        pool: Pool,
        events: Broadcast,
        clock: Clock,
        lane: Threads,
        poison: PoisonBox,
        sources: Sources,
    ) -> None:
        self._genesis = genesis
        self._blocks = blocks
        self._commit = commit
        self._pool = pool
        self._events = events
        self._clock = clock
        self._lane = lane
        self._poison = poison
        self._sources = sources
        self._send, self._receive = trio.open_memory_channel[tuple[Checked, str]](QUEUE)
        self._under_way: dict[bytes, trio.Event] = {}
        self._orphans: OrderedDict[bytes, tuple[Checked, str]] = OrderedDict()

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped block is forwarded, and queue it when it is."""
        try:
            block = decode_block(raw)
            if self._is_known(block.id) or block.id in self._poison:
                return Verdict.IGNORE
            checked = await self._lane.run(
                check, block, self._genesis, self._clock.now_ms()
            )
            self._pool.check_room(block.header.account)
            self._send.send_nowait((checked, peer))
        except (ProtocolError, Reject) as error:
            logger.info("refused a block of %s: %s", peer, error)
            return Verdict.REJECT
        except (Ignore, trio.WouldBlock):
            return Verdict.IGNORE
        return Verdict.ACCEPT

    async def submit(self, block: Block, peer: str = "") -> None:
        """Take in a block that we made or asked for; stored durably on return.

        Raises Reject or Ignore. Unknown parents are fetched from `peer` first.
        """
        if self._blocks.has(block.id):
            return
        with self._poison.containing("block", lambda: (block.id, encode_block(block))):
            now_ms = self._clock.now_ms()
            checked = await self._lane.run(check, block, self._genesis, now_ms)
            await self._admit(checked, peer)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Admit what gossip brought."""
        for id, _ in self._blocks.pending():
            block = self._blocks.get(id)
            if block is not None:
                self._pool.add(block)
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        async for checked, peer in self._receive.clone():
            try:
                await self._admit_contained(checked, peer)
            except Reject as error:
                self._sources.blame(peer, error)
            except (Ignore, Unavailable) as error:
                logger.debug("a block of %s waits: %s", peer, error)

    def _is_known(self, id: bytes) -> bool:
        return id in self._pool or id in self._under_way or self._blocks.has(id)

    async def _admit_contained(self, checked: Checked, peer: str) -> None:
        block = checked.block
        with self._poison.containing("block", lambda: (block.id, encode_block(block))):
            await self._admit(checked, peer)

    async def _admit(self, checked: Checked, peer: str) -> None:
        block = checked.block
        while block.id in self._under_way:
            await self._under_way[block.id].wait()
        if self._blocks.has(block.id):
            return
        self._orphans.pop(block.id, None)
        self._under_way[block.id] = trio.Event()
        try:
            if self._missing(block):
                await self._connect(checked, peer)
            self._check_height(block)
            arrival = Arrival(time_ms=self._clock.now_ms(), peer=peer)
            await self._commit.submit(self._blocks.batch([block], arrival))
            self._pool.add(block)
        finally:
            self._under_way.pop(block.id).set()
        self._events.publish(BlockStored(block))
        await self._release(block.id)

    def _missing(self, block: Block) -> list[bytes]:
        return [p for p in block.header.parents if not self._blocks.has(p)]

    def _check_height(self, block: Block) -> None:
        heights = []
        for parent in block.header.parents:
            signed = self._blocks.signed_header(parent)
            if signed is None:
                raise Ignore("a parent is unknown")
            if signed.header.chain != block.header.chain:
                raise Reject("a parent on another chain")
            heights.append(signed.header.height)
        if block.header.height != (1 + max(heights) if heights else 0):
            raise Reject("the height is not one more than the highest parent's")

    async def _connect(self, checked: Checked, peer: str) -> None:
        """Fetch the ancestors of an orphan from who sent it; park it when they fail."""
        if not peer:
            raise Ignore("a parent is unknown")
        fetched: list[Block] = []
        wanted = self._missing(checked.block)
        try:
            while wanted and len(fetched) < MAX_ANCESTRY:
                got = await self._sources.fetch(peer, wanted)
                if not got:
                    raise Ignore("the sender does not have the parents")
                fetched += got
                here = {block.id for block in fetched}
                wanted = [
                    parent
                    for block in got
                    for parent in self._missing(block)
                    if parent not in here
                ][:256]
        except (Ignore, Unavailable):
            if not self._missing(checked.block):
                return  # they came another way meanwhile
            self._park(checked, peer)
            raise
        for block in sorted(fetched, key=lambda block: block.header.height):
            await self.submit(block, "")

    def _park(self, checked: Checked, peer: str) -> None:
        from_peer = sum(1 for _, sender in self._orphans.values() if sender == peer)
        if from_peer >= MAX_ORPHANS_PER_PEER:
            return
        self._orphans[checked.block.id] = (checked, peer)
        if len(self._orphans) > MAX_ORPHANS:
            self._orphans.popitem(last=False)

    async def _release(self, parent: bytes) -> None:
        freed = [
            id
            for id, (checked, _) in self._orphans.items()
            if parent in checked.block.header.parents
            and not self._missing(checked.block)
        ]
        for id in freed:
            checked, peer = self._orphans.pop(id)
            try:
                await self._admit(checked, peer)
            except Reject as error:
                self._sources.blame(peer, error)
            except Ignore as error:
                logger.debug("an orphan of %s is dropped: %s", peer, error)
