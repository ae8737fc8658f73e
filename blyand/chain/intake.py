"""The one way in for a block: check, find its parents, store, tell.

Blocks come by gossip (through `gossip_check`, which must be quick), as answers to our
own requests, and from this node itself; all end in `_admit`. Bounds, each per peer and
in all (DEC-C12): the arrival queue (full: gossip is ignored and comes back by sync),
orphans (full: the oldest go), requests for ancestors; the pool has its own.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block, decode_block, encode_block
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.blocks import MAX_IDS
from blyand.chain.pool import Pool
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import BlockStored, Broadcast
from blyand.net.gossip import Verdict
from blyand.net.identity import peer_id_of
from blyand.poison import PoisonBox
from blyand.rules.chain.intake import Checked, check
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore
from blyand.store.commit import GroupCommit
from blyand.store.schema import Arrival

logger = logging.getLogger(__name__)

QUEUE = 1024
QUEUE_PER_PEER = 256
WORKERS = 4
MAX_ORPHANS = 1024
MAX_ORPHANS_PER_PEER = 256
ORPHAN_S = 600.0  # how long an orphan waits for its parents
MAX_CONNECTING = 8  # peers that are asked for ancestors at once
CONNECT_S = 20.0  # how long one of them may take
SMALL_BYTES = 4096  # a block of this size decodes in less than a millisecond

FetchBlocks = Callable[[str, Sequence[bytes]], Awaitable[Sequence[Block]]]


@dataclass(frozen=True)
class Sources:
    """What intake needs of the network."""

    fetch: FetchBlocks
    blame: Callable[[str, Exception], None]


@dataclass(frozen=True)
class Orphan:
    """A checked block whose parents are not here."""

    checked: Checked
    peer: str
    since_s: float  # trio time


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
        self._queued: Counter[str] = Counter()
        self._under_way: dict[bytes, trio.Event] = {}
        self._orphans: OrderedDict[bytes, Orphan] = OrderedDict()
        self._connecting: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped block is forwarded, and queue it when it is.

        Raises ProtocolError or Reject for what the forwarder should have refused.
        """
        try:
            if len(raw) <= SMALL_BYTES:
                block = decode_block(raw)
            else:
                block = await self._lane.run(decode_block, raw)
            if self._is_known(block.id) or block.id in self._poison:
                return Verdict.IGNORE
            if self._queued[peer] >= QUEUE_PER_PEER:
                return Verdict.IGNORE
            checked = await self._lane.run(
                check, block, self._genesis, self._clock.now_ms()
            )
            self._pool.check_room(block.header.account)
            self._send.send_nowait((checked, peer))
        except (ProtocolError, Reject) as error:
            logger.info("refused a block of %s: %s", peer, error)
            raise
        except (Ignore, trio.WouldBlock):
            return Verdict.IGNORE
        self._queued[peer] += 1
        return Verdict.ACCEPT

    async def submit(
        self, block: Block, peer: str = "", *, is_final: bool = False
    ) -> None:
        """Take in a block that we made or asked for; stored durably on return.

        `is_final`: a final checkpoint orders it, so neither our clock nor our room
        count. Raises Reject, or Ignore: an orphan is kept, its parents are asked for.
        """
        if self._blocks.has(block.id):
            return
        if block.id in self._poison and not is_final:
            raise Ignore("this node fell over on the block before")
        now_ms = block.header.time_ms if is_final else self._clock.now_ms()
        with self._poison.containing("block", lambda: (block.id, encode_block(block))):
            checked = await self._lane.run(check, block, self._genesis, now_ms)
            if peer and not is_final:
                self._pool.check_room(block.header.account)
            await self._admit(checked, peer)
        await self._release(block.id)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Admit what gossip brought."""
        for id, arrival in self._blocks.pending():
            block = self._blocks.get(id)
            if block is not None:
                self._pool.add(block, keep=not arrival.peer)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        async for checked, peer in self._receive.clone():
            self._queued[peer] -= 1
            if not self._queued[peer]:
                del self._queued[peer]
            if await self._admit_contained(checked, peer):
                await self._release(checked.block.id)

    def _is_known(self, id: bytes) -> bool:
        return (
            id in self._pool
            or id in self._under_way
            or id in self._orphans
            or self._blocks.has(id)
        )

    async def _admit_contained(self, checked: Checked, peer: str) -> bool:
        """Admit a block; True when it is stored now.

        Its author pays for what is wrong with it: who forwarded it may not have had the
        parents that show it (DEC-A2).
        """
        block = checked.block
        try:
            with self._poison.containing(
                "block", lambda: (block.id, encode_block(block))
            ):
                await self._admit(checked, peer)
        except Reject as error:
            self._sources.blame(peer_id_of(block.header.author), error)
            return False
        except (Ignore, Unavailable) as error:
            logger.debug("a block of %s waits: %s", peer, error)
            return False
        return True

    async def _admit(self, checked: Checked, peer: str) -> None:
        block = checked.block
        while block.id in self._under_way:
            await self._under_way[block.id].wait()
        if self._blocks.has(block.id):
            return
        if self._missing(block):
            self._park(checked, peer)
            raise Ignore("a parent is unknown")
        self._under_way[block.id] = trio.Event()
        try:
            self._check_height(block)
            arrival = Arrival(time_ms=self._clock.now_ms(), peer=peer)
            with trio.CancelScope(shield=True):  # on disk and not in the pool is lost
                await self._commit.submit(self._blocks.batch([block], arrival))
            self._pool.add(block, keep=not peer)
        finally:
            self._orphans.pop(block.id, None)
            self._under_way.pop(block.id).set()
        self._events.publish(BlockStored(block))

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

    # Orphans

    def _park(self, checked: Checked, peer: str) -> None:
        """Keep a block until its parents are here, and ask its sender for them."""
        if not peer:
            return
        now = trio.current_time()
        self._orphans[checked.block.id] = Orphan(checked, peer, now)
        self._orphans.move_to_end(checked.block.id)
        while now - next(iter(self._orphans.values())).since_s > ORPHAN_S:
            self._orphans.popitem(last=False)
        own = [id for id, other in self._orphans.items() if other.peer == peer]
        if len(own) > MAX_ORPHANS_PER_PEER:
            del self._orphans[own[0]]
        if len(self._orphans) > MAX_ORPHANS:
            self._orphans.popitem(last=False)
        if self._nursery is not None and len(self._connecting) < MAX_CONNECTING:
            if peer not in self._connecting:
                self._connecting.add(peer)
                self._nursery.start_soon(self._connect, peer)

    async def _connect(self, peer: str) -> None:
        """Fetch what a peer's orphans wait for, and what that waits for in turn."""
        asked: set[bytes] = set()
        deadline = trio.current_time() + CONNECT_S
        try:
            while wanted := self._wanted(peer, asked):
                asked.update(wanted)
                got: Sequence[Block] = ()
                with trio.move_on_at(deadline):
                    got = await self._sources.fetch(peer, wanted)
                for block in sorted(got, key=lambda block: block.header.height):
                    try:
                        await self.submit(block, peer)
                    except Ignore as error:
                        logger.debug("an ancestor from %s: %s", peer, error)
                if trio.current_time() >= deadline:
                    break
        except (Reject, ProtocolError) as error:
            self._sources.blame(peer, error)
        except Unavailable as error:
            logger.debug("%s does not give ancestors: %s", peer, error)
        finally:
            self._connecting.discard(peer)

    def _wanted(self, peer: str, asked: set[bytes]) -> list[bytes]:
        missing = {
            parent
            for orphan in self._orphans.values()
            if orphan.peer == peer
            for parent in self._missing(orphan.checked.block)
        }
        return sorted(missing - asked - self._orphans.keys())[:MAX_IDS]

    async def _release(self, parent: bytes) -> None:
        """Admit the orphans that waited for a block, and those that waited for them."""
        stored = deque([parent])
        while stored and self._orphans:
            parent = stored.popleft()
            freed = [
                orphan
                for orphan in self._orphans.values()
                if parent in orphan.checked.block.header.parents
                and not self._missing(orphan.checked.block)
            ]
            for orphan in freed:
                if await self._admit_contained(orphan.checked, orphan.peer):
                    stored.append(orphan.checked.block.id)
                else:
                    self._orphans.pop(orphan.checked.block.id, None)
