"""Keeping this node's groups at their heads: fetch, follow updates, roll back, forget.

Every holder recomputes each update and checks both roots. The finalised head is the
truth; provisional updates are applied ahead of it, and undone by stepping back to a
version that is still here (DEC-A6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import Run, TileRootsList, TileUpdate
from blyan_proto.errors import ProtocolError
from blyan_tile.layout import Group
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.events import (
    BlockStored,
    Broadcast,
    CheckpointFinalised,
    HeadMoved,
    HeldChanged,
)
from blyand.protocols.fetch import Fetcher
from blyand.rules.model import placement
from blyand.rules.model import update as rules
from blyand.rules.model.model import layout_for
from blyand.rules.records import GROUPS, MODELS, NODES, RUNS, SCHEDULES
from blyand.rules.records import Group as GroupRecord
from blyand.rules.records import ModelRecord
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.training import tiles
from blyand.training.trails import Key, Trails, Version

logger = logging.getLogger(__name__)

REPLAY = 64  # updates that are replayed before fetching tiles instead
AGAIN_S = 1.0


@dataclass(frozen=True)
class Blocks:
    """What the holder reads of the chain."""

    view: Callable[[], View]
    get: Callable[[bytes], Block | None]
    pending: Callable[[], Iterator[Block]]


class Holder:
    """The groups that this node is to hold, at their newest provisional versions."""

    def __init__(
        self,
        account: bytes,
        blocks: Blocks,
        blobs: BlobStore,
        fetcher: Fetcher,
        lane: Threads,
        events: Broadcast,
        peer_of: Callable[[bytes], str | None],
    ) -> None:
        self._account = account
        self._blocks = blocks
        self._blobs = blobs
        self._fetcher = fetcher
        self._lane = lane
        self._events = events
        self._peer_of = peer_of
        self._heads: dict[tuple[bytes, int], Version] = {}
        self._trails = Trails(blobs)
        self._children: dict[bytes, dict[bytes, Block]] = {}  # parent update -> updates
        self._refused: set[bytes] = set()
        self._held: dict[bytes, frozenset[int]] = {}
        self._running: set[tuple[bytes, int]] = set()
        self._again: set[tuple[bytes, int]] = set()

    def head(self, model: bytes, group: int) -> Version | None:
        """Return the newest version of a group that this node holds whole."""
        return self._heads.get((model, group))

    def held(self, model: bytes) -> frozenset[int]:
        """Return the groups whose finalised head is here."""
        return self._held.get(model, frozenset())

    def desired(self, record: ModelRecord) -> frozenset[int]:
        """Return the groups that placement gives to this node (DEC-A8)."""
        view = self._blocks.view()
        nodes = [node.account for node in NODES.scan(view)]
        placed = placement.place(
            record.id, layout_for(record.model), nodes, record.model.replication
        )
        return placed.get(self._account, frozenset())

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Follow the chain: each group in a task of its own, one at a time per group."""
        await self._lane.run(self._sweep)
        with self._events.subscribe(
            BlockStored, CheckpointFinalised, capacity=4096
        ) as facts:
            for block in self._blocks.pending():
                self._note(block)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                self._start_all()
                async for fact in facts:
                    if isinstance(fact, CheckpointFinalised):
                        self._start_all()
                    elif isinstance(fact, BlockStored):
                        update = fact.block.content
                        if not isinstance(update, TileUpdate):
                            continue
                        key = (update.model, update.group)
                        if key in self._heads or key in self._running:
                            self._note(fact.block)
                            self._start(*key)

    def _note(self, block: Block) -> None:
        content = block.content
        if isinstance(content, TileUpdate):
            self._children.setdefault(content.parent, {})[block.id] = block

    def _sweep(self) -> None:
        """Delete derived tiles of a former life that no record names."""
        view = self._blocks.view()
        needed = {
            root
            for record in GROUPS.scan(view)
            for tile in (*record.tiles, *record.adopted)
            for root in (tile.weights, tile.momentum)
        }
        for root in self._blobs.roots(durable=False):
            if root not in needed:
                self._blobs.delete(root)

    def _start_all(self) -> None:
        for record in MODELS.scan(self._blocks.view()):
            if record.weights == record.groups:
                desired = self.desired(record)
                self._superfluous(record, self.held(record.id) - desired)
                for group in desired | self.held(record.id):
                    self._start(record.id, group)

    def _start(self, model: bytes, group: int) -> None:
        if (model, group) in self._running:
            self._again.add((model, group))
        else:
            self._running.add((model, group))
            self._nursery.start_soon(self._keep_up, model, group)

    async def _keep_up(self, model: bytes, index: int) -> None:
        """Follow one group until nothing new is left to do."""
        try:
            while True:
                self._again.discard((model, index))
                record = MODELS.get(self._blocks.view(), model)
                assert record is not None
                group = layout_for(record.model).groups[index]
                try:
                    if await self._follow(model, group):
                        self._set_held(model, self.held(model) | {index})
                except (Unavailable, ProtocolError, Reject) as error:
                    logger.info("%s is not up to date: %s", group.name, error)
                    await trio.sleep(AGAIN_S)
                    continue
                if (model, index) not in self._again:
                    return
        finally:
            self._running.discard((model, index))

    def _set_held(self, model: bytes, held: frozenset[int]) -> None:
        if held != self.held(model):
            self._held[model] = held
            self._events.publish(HeldChanged(model, held))

    def _superfluous(self, record: ModelRecord, extra: frozenset[int]) -> None:
        """Forget groups that placement gave to others, once enough others hold them.

        Not while a run is open: its rounds were scheduled with us as their holder.
        """
        if record.run is not None:
            return
        others = [
            rules.held_by(node)
            for node in NODES.scan(self._blocks.view())
            if extra and node.model == record.id and node.account != self._account
        ]
        for group in extra:
            holders = sum(1 for held in others if group in held)
            if holders >= record.model.replication:
                if (record.id, group) not in self._running:
                    self._set_held(record.id, self.held(record.id) - {group})
                    self._trails.forget((record.id, group))
                    self._heads.pop((record.id, group), None)

    async def _follow(self, model: bytes, group: Group) -> bool:
        """Have the finalised head, and go on from it as far as updates reach."""
        record = GROUPS.get(self._blocks.view(), model, group.index)
        if record is None:
            return False
        key = (model, group.index)
        final = self._trails.find(key, record.head)
        if final is None:
            final = await self._reach(record, group, key)
        await self._keep_adopted(record, key)
        await self._keep_snapshot(record, key)
        head = self._heads.get(key)
        if head is None or not self._trails.descends(key, head, final):
            self._move(key, final)  # a roll-back, or the first version
            head = final
        while (after := await self._extend(head, group)) is not None:
            self._trails.append(key, after)
            self._move(key, after)
            head = after
        for version in self._trails.trim(key, record.head, record.snapshot):
            for block in self._children.pop(version.block, ()):
                self._refused.discard(block)
        await self._lane.run(self._trails.sweep)
        return True

    def _move(self, key: Key, version: Version) -> None:
        self._heads[key] = version
        self._events.publish(HeadMoved(*key, version.rounds, version.block))

    async def _extend(self, head: Version, group: Group) -> Version | None:
        """Return the version after `head` by the best valid update known, if any."""
        candidates = [
            block
            for block in self._children.get(head.block, {}).values()
            if block.id not in self._refused
        ]
        for block in sorted(candidates, key=lambda b: (b.content.rank, b.id)):
            try:
                self._check_provisional(block, head)
                return await self._applied(block, head, group)
            except Ignore as error:
                logger.debug("update %s waits: %s", block.id.hex()[:16], error)
            except Reject as error:
                logger.info("update %s: %s", block.id.hex()[:16], error)
                self._refused.add(block.id)
            except ProtocolError as error:
                logger.warning("update %s lies: %s", block.id.hex()[:16], error)
                self._refused.add(block.id)
        return None

    def _check_provisional(self, block: Block, head: Version) -> None:
        update: TileUpdate = block.content
        view = self._blocks.view()
        if SCHEDULES.get(view, update.run, update.round) is None:
            raise Ignore("its round is not open in the state that this node executed")
        _, schedule = rules.open_round(view, update.run, update.round)
        expected = head.rounds if head.run == update.run else 0
        if update.base != head.tiles or update.round != expected:
            raise Reject("the update does not continue the group's head")
        rules.check_author(update, schedule, block.header.author)
        rules.check_contributions(update, schedule)

    async def _applied(self, block: Block, base: Version, group: Group) -> Version:
        """Compute the version that an update makes; ProtocolError when it lies."""
        update: TileUpdate = block.content
        run = self._run_of(update.run)
        if update.blob is not None:
            hint = self._peer_of(block.header.account)
            await self._fetcher.get(update.blob, [hint] if hint else [])
        result = await self._lane.run(self._compute, group, base.tiles, update, run)
        if result != update.result:
            raise ProtocolError("its result roots are not those computed here")
        return Version(block.id, base.block, update.run, update.round + 1, result)

    def _compute(
        self, group: Group, base: TileRootsList, update: TileUpdate, run: Run
    ) -> TileRootsList:
        parts = tiles.parts_of(self._blobs, update.blob, update.contributions, base)
        return tiles.advance(self._blobs, group, base, parts, run)

    def _run_of(self, id: bytes) -> Run:
        record = RUNS.get(self._blocks.view(), id)
        if record is None:
            raise Reject("unknown run")
        return record.run

    async def _reach(self, record: GroupRecord, group: Group, key: Key) -> Version:
        """Get to the finalised head: by replay of updates, or by fetching its tiles."""
        head = Version(
            record.head,
            self._parent_of(record.head),
            record.run,
            record.rounds,
            record.tiles,
        )
        if not self._is_here(record.tiles):
            try:
                await self._replay(record, group, key)
            except (Unavailable, ProtocolError, Reject) as error:
                logger.info("%s: no replay (%s); fetching tiles", group.name, error)
                await self._fetch_tiles(record, record.tiles)
        self._trails.append(key, head)
        return head

    async def _replay(self, record: GroupRecord, group: Group, key: Key) -> None:
        """Walk back to a version that is here (or can be fetched), then forward again."""
        path: list[Block] = []
        block = self._blocks.get(record.head)
        while block is not None and isinstance(block.content, TileUpdate):
            path.append(block)
            if self._is_here(block.content.base) or block.content.parent == (
                record.snapshot
            ):
                break
            if len(path) > REPLAY:
                raise Reject("too many updates to replay")
            block = self._blocks.get(block.content.parent)
        if not path:
            raise Reject("no update to replay")
        first: TileUpdate = path[-1].content
        if not self._is_here(first.base):
            await self._fetch_tiles(record, first.base)
        base = Version(
            first.parent,
            self._parent_of(first.parent),
            first.run if first.round else None,
            first.round,
            first.base,
        )
        for step in reversed(path[1:]):
            base = await self._applied(step, base, group)
            self._trails.append(key, base)
        await self._applied(path[0], base, group)  # the caller appends the head

    def _parent_of(self, block: bytes) -> bytes | None:
        made = self._blocks.get(block)
        if made is None or not isinstance(made.content, TileUpdate):
            return None
        return made.content.parent

    async def _fetch_tiles(self, record: GroupRecord, roots: TileRootsList) -> None:
        hints = self._holders(record.model, record.group)
        for root in roots:
            await self._fetcher.get(root.weights, hints, durable=True)
            if root.momentum is not None:
                await self._fetcher.get(root.momentum, hints, durable=True)

    def _holders(self, model: bytes, group: int) -> Sequence[str]:
        peers = (
            self._peer_of(node.account)
            for node in NODES.scan(self._blocks.view())
            if node.model == model and group in rules.held_by(node)
        )
        return [peer for peer in peers if peer]

    async def _keep_adopted(self, record: GroupRecord, key: Key) -> None:
        """Serving needs the adopted weights too, which may be older than the head's."""
        roots = {tile.weights for tile in record.adopted}
        for root in roots:
            if not self._blobs.has(root):
                hints = self._holders(record.model, record.group)
                await self._fetcher.get(root, hints)
        self._trails.adopt(key, roots)

    async def _keep_snapshot(self, record: GroupRecord, key: Key) -> None:
        """Make the version that a snapshot block names durable (DEC-B3)."""
        version = self._trails.find(key, record.snapshot)
        for root in version.roots if version else ():
            if not self._blobs.is_durable(root):
                array = self._blobs.open_array(root)
                await self._lane.run(self._blobs.put_array, array)

    def _is_here(self, roots: TileRootsList) -> bool:
        return all(
            self._blobs.has(root.weights)
            and (root.momentum is None or self._blobs.has(root.momentum))
            for root in roots
        )
