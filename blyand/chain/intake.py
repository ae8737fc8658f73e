"""The one way in for a block: check, find its parents, store, tell.

Blocks come by gossip (through `gossip_check`, which must be quick), as answers to our
own requests, and from this node itself; all end in `_admit`, by the group. Bounds, each per peer and in all (DEC-C12): the arrival queue (full: gossip is ignored
and comes back by sync), orphans, requests for ancestors; the pool has its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block, decode_block
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.blocks import MAX_IDS
from blyand.chain.groups import GROUP, Groups, Refusal
from blyand.chain.orphans import Arrived, Orphans
from blyand.chain.pool import Pool
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import DiskFull, Unavailable
from blyand.events import Broadcast
from blyand.net.gossip import Verdict
from blyand.net.identity import peer_id_of
from blyand.poison import PoisonBox
from blyand.rules.chain.intake import Checked, ParentUnknown, Place, check
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore
from blyand.store.commit import GroupCommit

logger = logging.getLogger(__name__)

QUEUE = 1024
QUEUE_PER_PEER = 256
WORKERS = 2  # while one's group is written, the other's is checked
MAX_CONNECTING = 8  # peers that are asked for ancestors at once
CONNECT_S = 20.0  # how long one of them may take
SMALL_BYTES = 4096  # a block of this size decodes in less than a millisecond

FetchBlocks = Callable[[str, Sequence[bytes]], Awaitable[Sequence[Block]]]


@dataclass(frozen=True)
class Sources:
    """What intake needs of the network and of the state."""

    fetch: FetchBlocks
    blame: Callable[[str, Exception], None]
    is_registered: Callable[[bytes], bool] = lambda account: False
    tip: Callable[[bytes], Place | None] = lambda id: None  # of ordered blocks
    lacks_history: Callable[[], bool] = lambda: False  # this node began with a state


@dataclass(frozen=True)
class Admission:
    """What became of one block of an answer."""

    id: bytes
    error: Refusal | None = None  # None: it is stored, durably


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
        self._pool = pool
        self._clock = clock
        self._lane = lane
        self._poison = poison
        self._sources = sources
        self._groups = Groups(
            genesis,
            blocks,
            commit,
            pool,
            events,
            clock,
            lane,
            poison,
            sources.is_registered,
            sources.tip,
            sources.lacks_history,
        )
        self._send, self._receive = trio.open_memory_channel[Arrived](QUEUE)
        self._queued: Counter[str] = Counter()
        self._orphans = Orphans()
        self._connecting: set[str] = set()
        self._nursery: trio.Nursery | None = None
        self.refused: Callable[[Block], None] = lambda block: None  # told of offences

    @property
    def waiting(self) -> int:
        """How many checked blocks of gossip are not stored yet."""
        return sum(self._queued.values())

    @property
    def orphans(self) -> int:
        """How many blocks wait for their parents."""
        return len(self._orphans)

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped block is forwarded, and queue it when it is.

        Raises ProtocolError or Reject for what the forwarder should have refused.
        """
        block = None
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
            self._pool.check_room(block.header.author)
            self._send.send_nowait(Arrived(checked, peer))
        except (ProtocolError, Reject) as error:
            logger.info("refused a block of %s: %s", peer, error)
            if block is not None:
                self.refused(block)
            raise
        except (Ignore, trio.WouldBlock):
            return Verdict.IGNORE
        self._queued[peer] += 1
        return Verdict.ACCEPT

    async def submit(
        self, block: Block, peer: str = "", *, is_final: bool = False
    ) -> None:
        """Take in one block; stored durably on return. Like `submit_many`, but raises.

        Reject, or Ignore: an orphan is kept, its parents are asked for.
        """
        (admission,) = await self.submit_many([block], peer, is_final=is_final)
        if admission.error is not None:
            raise admission.error

    async def submit_many(
        self, blocks: Sequence[Block], peer: str, *, is_final: bool = False
    ) -> list[Admission]:
        """Take in the blocks of an answer, parents first; a bad one holds up no other.

        Returns what became of each, in the order given: those without an error are
        stored durably. Nobody is blamed: that is for the caller, who knows whom it
        asked. `is_final`: a final checkpoint orders them, so neither our clock nor our
        room count. `peer` "": we made them.
        """
        refused: dict[int, Refusal] = {}
        waiting = []
        for place, block in enumerate(blocks):
            if block.id in self._poison and not is_final:
                refused[place] = Ignore("this node fell over on the block before")
            elif not self._blocks.serves(block.id, is_final):
                waiting.append(place)
        waiting.sort(key=lambda place: blocks[place].header.height)
        for start in range(0, len(waiting), GROUP):
            group = waiting[start : start + GROUP]
            verdicts = await self._groups.check(
                [blocks[place] for place in group], is_final
            )
            coming: Counter[bytes] = Counter()
            arrived: dict[bytes, Arrived] = {}
            for place, verdict in zip(group, verdicts):
                try:
                    if not isinstance(verdict, Checked):
                        raise verdict
                    author = verdict.block.header.author
                    if peer and not is_final:
                        self._pool.check_room(author, coming[author])
                    coming[author] += 1
                    arrived[verdict.id] = Arrived(verdict, peer, is_final)
                except (Reject, Ignore) as error:
                    refused[place] = error
                    if isinstance(error, Reject):
                        self.refused(blocks[place])
            errors = await self._admit(arrived.values())
            for place in group:
                if why := errors.get(blocks[place].id):
                    refused.setdefault(place, why)
                    if isinstance(why, Reject):
                        self.refused(blocks[place])
        return [
            Admission(block.id, refused.get(place))
            for place, block in enumerate(blocks)
        ]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Admit what gossip brought."""
        for number, (block, own) in enumerate(await self._lane.run(self._pending)):
            self._pool.add(block, keep=own)
            if number % GROUP == 0:
                await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._lane.run, self._blocks.learn)
            for _ in range(WORKERS):
                nursery.start_soon(self._work)
            task_status.started()

    def _pending(self) -> list[tuple[Block, bool]]:
        """Return the blocks that waited when the daemon stopped, and whether they are ours."""
        found = ((self._blocks.get(id), how) for id, how in self._blocks.pending())
        return [(block, not how.peer) for block, how in found if block is not None]

    async def _work(self) -> None:
        async for first in self._receive.clone():
            group = [first]
            while len(group) < GROUP:
                try:
                    group.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            for one in group:
                self._queued[one.peer] -= 1
                if not self._queued[one.peer]:
                    del self._queued[one.peer]
            try:
                self._blame_authors(group, await self._admit(group))
            except DiskFull as error:  # they come again by sync
                logger.info("%d blocks are not kept: %s", len(group), error)

    def _blame_authors(
        self, group: Iterable[Arrived], errors: dict[bytes, Refusal]
    ) -> None:
        """Let the authors pay for what is wrong with their blocks.

        Who forwarded one may not have had the parents that show it (DEC-A2).
        """
        for one in group:
            error = errors.get(one.id)
            if isinstance(error, Reject):
                author = one.checked.block.header.author
                self.refused(one.checked.block)
                self._sources.blame(peer_id_of(author), error)
            elif error is not None:
                logger.debug("block %s waits: %s", one.id.hex()[:16], error)

    def _is_known(self, id: bytes) -> bool:
        return (
            id in self._pool
            or id in self._groups
            or id in self._orphans
            or self._blocks.has(id)
        )

    async def _admit(self, arrived: Iterable[Arrived]) -> dict[bytes, Refusal]:
        """Store checked blocks and the orphans that waited for them.

        Returns, by id, why one of `arrived` is not stored.
        """
        errors: dict[bytes, Refusal] = {}
        waiting = sorted(arrived, key=lambda one: one.height)
        freed: list[Arrived] = []
        while waiting:
            group, waiting = waiting[:GROUP], waiting[GROUP:]
            for one in group:
                self._orphans.discard(one.id)
            refused = await self._groups.store(group)
            again, stored = [], []
            for one in group:
                error = refused.get(one.id)
                if isinstance(error, ParentUnknown) and not self._park(one, error):
                    again.append(one)  # its parents came while we looked
                elif error is not None:
                    errors[one.id] = error
                else:
                    stored.append(one.id)
            waiting = again + waiting
            freed += self._orphans.release(stored)
        if freed:
            self._blame_authors(freed, await self._admit(freed))
        return errors

    # Orphans

    def _park(self, one: Arrived, error: ParentUnknown) -> bool:
        """Keep a block until its parents are here, and ask its sender for them.

        False when they came in the meantime.
        """
        missing = tuple(p for p in error.missing if not self._blocks.has(p))
        if not missing:
            return False
        if not one.peer:
            return True
        self._orphans.park(one, missing, trio.current_time())
        if self._nursery is not None and len(self._connecting) < MAX_CONNECTING:
            if one.peer not in self._connecting:
                self._connecting.add(one.peer)
                self._nursery.start_soon(self._connect, one.peer)
        return True

    async def _connect(self, peer: str) -> None:
        """Fetch what a peer's orphans wait for, and what that waits for in turn."""
        asked: set[bytes] = set()
        deadline = trio.current_time() + CONNECT_S
        try:
            while wanted := sorted(self._orphans.wanted(peer) - asked)[:MAX_IDS]:
                asked.update(wanted)
                got: Sequence[Block] = ()
                with trio.move_on_at(deadline):
                    got = await self._sources.fetch(peer, wanted)
                for one in await self.submit_many(got, peer):
                    if isinstance(one.error, Reject):
                        raise one.error
                if trio.current_time() >= deadline:
                    break
        except (Reject, ProtocolError) as error:
            self._sources.blame(peer, error)
        except Unavailable as error:
            logger.debug("%s does not give ancestors: %s", peer, error)
        finally:
            self._connecting.discard(peer)
