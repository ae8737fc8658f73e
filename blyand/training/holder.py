"""Keeping this node's groups at their heads: fetch, follow updates, roll back, forget.

Every holder recomputes each update and checks both roots. The finalised head is the
truth; provisional updates are applied ahead of it, and undone by stepping back to a
version that is still here (DEC-A6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileRootsList, TileUpdate
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
from blyand.rules.model import placement, signatures
from blyand.rules.model import update as rules
from blyand.rules.model.dispute import open_disputes
from blyand.rules.model.model import layout_for
from blyand.rules.records import GROUPS, MODELS, NODES, VERSIONS
from blyand.rules.records import Group as GroupRecord
from blyand.rules.records import ModelRecord
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blobs import BlobStore
from blyand.training.draft import check_draft
from blyand.training.replay import Bring, Replay
from blyand.training.trails import Key, Trails, Version
from blyand.training.waiting import Blocks, Waiting

logger = logging.getLogger(__name__)

AGAIN_S = 1.0
MAX_FOLLOWED = 32  # groups at once: the loop has other work, too
LOOKED_AT_ONCE = 128  # groups; reading a record takes 20 microseconds


class Holder:
    """The groups that this node is to hold, at their newest provisional versions."""

    def __init__(
        self,
        account: bytes,
        blocks: Blocks,
        blobs: BlobStore,
        fetcher: Fetcher,
        bring: Bring,
        lane: Threads,
        events: Broadcast,
        peer_of: Callable[[bytes], str | None],
        liveness_ms: int,
        doubt: Callable[[Block, TileRootsList], None],
        more: Callable[[ModelRecord], frozenset[int]] = lambda record: frozenset(),
    ) -> None:
        """`doubt(block, computed)` is told of updates that claim another result; `more`
        are groups that this node holds beyond what placement gives it."""
        self._more = more
        self._account = account
        self._blocks = blocks
        self._blobs = blobs
        self._fetcher = fetcher
        self._lane = lane
        self._events = events
        self._liveness_ms = liveness_ms
        self._heads: dict[Key, Version] = {}
        self._trails = Trails(blobs)
        self._replay = Replay(
            blocks, blobs, fetcher, bring, lane, self._trails, peer_of, doubt
        )
        self._waiting = Waiting(blocks, liveness_ms)
        self._held: dict[bytes, frozenset[int]] = {}
        self._followed: dict[Key, GroupRecord] = {}  # up to date with this record
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._turns = trio.CapacityLimiter(MAX_FOLLOWED)

    def head(self, model: bytes, group: int) -> Version | None:
        """Return the newest version of a group that this node holds whole."""
        return self._heads.get((model, group))

    def held(self, model: bytes) -> frozenset[int]:
        """Return the groups whose finalised head is here."""
        return self._held.get(model, frozenset())

    def uses(self, root: bytes) -> bool:
        """True while a version that is held here stands on the blob. From any thread."""
        return self._trails.uses(root)

    def is_slow(self, model: bytes, group: int) -> bool:
        """True when loading the group by replay took too long here. From any thread."""
        return (model, group) in self._replay.slow

    def desired(self, record: ModelRecord) -> frozenset[int]:
        """Return the groups that placement gives to this node (DEC-A8), and more."""
        placed = placement.placed_on(self._account, self._blocks.view(), record)
        return frozenset() if placed is None else placed | self._more(record)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Follow the chain: each group in a task of its own, one at a time per group."""
        await self._lane.run(self._sweep, self._needed())
        with self._events.subscribe(
            BlockStored, CheckpointFinalised, capacity=4096
        ) as facts:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._start_all()
                async for fact in facts:
                    if isinstance(fact, CheckpointFinalised):
                        await self._start_all()
                    elif isinstance(fact, BlockStored):
                        self._look_at(fact.block)

    def _look_at(self, block: Block) -> None:
        update = block.content
        if isinstance(update, TileUpdate):
            key = (update.model, update.group)
            is_ours = key in self._heads or key in self._running
            if is_ours and self._waiting.note(block):
                self._start(*key)

    def _needed(self) -> set[bytes]:
        """Return the roots of all tiles that state names."""
        return {
            root
            for record in GROUPS.scan(self._blocks.view())
            for tile in (*record.tiles, *record.adopted)
            for root in (tile.weights, tile.momentum)
            if root is not None
        }

    def _sweep(self, needed: set[bytes]) -> None:
        """Delete derived tiles of a former life that no record names."""
        for root in self._blobs.roots(durable=False):
            if root not in needed:
                self._blobs.delete(root)

    async def _start_all(self) -> None:
        """Start what changed; a group that is new here has updates to catch up with."""
        before = len(self._running)
        for record in MODELS.scan(self._blocks.view()):
            if record.weights == record.groups:
                desired = self.desired(record)
                self._superfluous(record, self.held(record.id) - desired)
                for count, group in enumerate(desired | self.held(record.id), 1):
                    if count % LOOKED_AT_ONCE == 0:
                        await trio.lowlevel.checkpoint()
                    if self._is_due((record.id, group)):
                        self._start(record.id, group)
        if len(self._running) > before and not self._running <= self._heads.keys():
            for block in self._blocks.pending():
                self._look_at(block)

    def _is_due(self, key: Key) -> bool:
        """True when a group's record changed, or an update of it waits."""
        record = GROUPS.get(self._blocks.view(), *key)
        return self._waiting.any(key) or self._followed.get(key) != record

    def _start(self, model: bytes, group: int) -> None:
        if (model, group) in self._running:
            self._again.add((model, group))
        else:
            self._running.add((model, group))
            self._nursery.start_soon(self._keep_up, model, group)

    async def _keep_up(self, model: bytes, index: int) -> None:
        """Follow one group until nothing new is left to do."""
        key = (model, index)
        try:
            while True:
                self._again.discard(key)
                record = MODELS.get(self._blocks.view(), model)
                assert record is not None
                group = layout_for(record.model).groups[index]
                try:
                    async with self._turns:
                        lacks_blobs = await self._follow(model, group)
                    self._set_held(model, self.held(model) | {index})
                except (Unavailable, ProtocolError, Reject) as error:
                    logger.info("%s is not up to date: %s", group.name, error)
                    if index not in self.desired(record) | self.held(model):
                        return  # placement gave it to others meanwhile
                    lacks_blobs = True
                if lacks_blobs:
                    await trio.sleep(AGAIN_S)
                elif key not in self._again:
                    return
        finally:
            self._running.discard(key)

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
                    self._forget((record.id, group))

    def _forget(self, key: Key) -> None:
        self._trails.forget(key)
        self._heads.pop(key, None)
        self._followed.pop(key, None)
        self._waiting.forget(key)

    async def _follow(self, model: bytes, group: Group) -> bool:
        """Have the finalised head, and go on from it as far as updates reach.

        True when an update could not be judged, as nobody gave its deltas.
        """
        key = (model, group.index)
        record = GROUPS.get(self._blocks.view(), *key)
        if record is None:
            raise Unavailable("the chain does not know its first weights")
        final = self._trails.find(key, record.head)
        if final is None:
            final = await self._replay.reach(record, group, key)
        final = self._as_counted(key, final, record)
        self._waiting.sweep(key)
        head = self._heads.get(key)
        if head is None or not self._stands(key, head, final):
            self._move(key, final)  # a roll-back, or the first version
        if group.name == "embed":  # it counts as held when they are here, too
            await self._replay.have_companions(model)
        lacks_blobs = await self._extend(key, group)
        await self._keep_adopted(record, key)
        await self._keep_snapshot(record, key)
        self._trails.trim(key, record.head, self._needed_of(record))
        if self._trails.has_unused:
            await self._lane.run(self._trails.sweep)
        self._followed[key] = record
        return lacks_blobs

    def _stands(self, key: Key, head: Version, final: Version) -> bool:
        """True when `head` is `final`, or grew from it by updates that still wait.

        An update that a checkpoint made a no-op, or that expired, never counts.
        """
        seen: Version | None = head
        while seen is not None and seen != final:
            if not self._waiting.counts(key, seen.block):
                return False
            seen = self._trails.find(key, seen.parent) if seen.parent else None
        return seen is not None

    def _as_counted(self, key: Key, version: Version, record: GroupRecord) -> Version:
        """Return the finalised head with the rounds that state counts behind it.

        They are more than it was made of where an update on it was voided (DEC-A5).
        """
        counted = replace(
            version, run=record.run, rounds=record.rounds, median=record.median
        )
        if counted != version:
            self._trails.renumber(key, version, counted)
        return counted

    def _needed_of(self, record: GroupRecord) -> set[bytes]:
        """Return the versions that others may ask for: a snapshot, bases of disputed."""
        view = self._blocks.view()
        needed = {record.snapshot}
        for one in open_disputes(view):
            if (one.model, one.group) == (record.model, record.group):
                version = VERSIONS.get(view, one.run, one.round, one.group)
                if version is not None:
                    needed.add(version.parent)
        return needed

    async def is_right(self, block: Block) -> bool:
        """Recompute an ordered update of any group. Unavailable when parts are lacking."""
        update: TileUpdate = block.content
        view = self._blocks.view()
        model = MODELS.get(view, update.model)
        record = GROUPS.get(view, update.model, update.group)
        if model is None or record is None:
            raise Unavailable("the chain does not know its model here")
        group = layout_for(model.model).groups[update.group]
        return await self._replay.is_right(block, record, group)

    def _move(self, key: Key, version: Version) -> None:
        self._heads[key] = version
        self._events.publish(HeadMoved(*key, version.rounds, version.block))

    async def _extend(self, key: Key, group: Group) -> bool:
        """Go on by the best valid updates known; True when deltas of one are lacking."""
        lacks_blobs, head = False, self._heads[key]
        while True:
            after, lacking = await self._after(key, head, group)
            lacks_blobs = lacks_blobs or lacking
            if after is None:
                return lacks_blobs
            self._trails.append(key, after)
            self._move(key, after)
            head = after

    async def _after(
        self, key: Key, head: Version, group: Group
    ) -> tuple[Version | None, bool]:
        """Return the version after `head`, if any; True when deltas are lacking."""
        lacks_blobs = False
        for block in self._waiting.after(key, head.block):
            known = self._trails.find(key, block.id)
            if known is not None:
                return known, lacks_blobs
            try:
                self._check_provisional(block, head)
                return await self._replay.applied(block, head, group), lacks_blobs
            except Unavailable as error:
                logger.info("update %s: %s", block.id.hex()[:16], error)
                lacks_blobs = True
            except Ignore as error:
                logger.debug("update %s waits: %s", block.id.hex()[:16], error)
            except Reject as error:
                logger.info("update %s: %s", block.id.hex()[:16], error)
                self._waiting.refuse(key, block.id)
            except ProtocolError as error:
                logger.warning("update %s lies: %s", block.id.hex()[:16], error)
                self._waiting.refuse(key, block.id)
        return None, lacks_blobs

    async def recompute(self, update: TileUpdate, network: bytes) -> Group:
        """Recompute a draft on this node's head; return its group if all is as it says.

        Ignore when the head is another one, Reject when it breaks a rule, Unavailable
        when its deltas do not come, FalseResult when it lies.
        """
        head = self.head(update.model, update.group)
        if head is None or head.block != update.parent:
            raise Ignore("the group's head is another one here")
        schedule = check_draft(
            self._blocks.view(), update, update.cosignatures[0].signer, head
        )
        signatures.check_cosignatures(update, schedule, network)
        record = MODELS.get(self._blocks.view(), update.model)
        assert record is not None  # this node holds a group of it
        group = layout_for(record.model).groups[update.group]
        author = signatures.accounts_of(update, schedule)[0]
        await self._replay.recompute(update, author, head.tiles, group)
        return group

    def made(self, update: TileUpdate) -> None:
        """Know the result of an update that this node formed itself."""
        self._replay.remember(update)

    def _check_provisional(self, block: Block, head: Version) -> None:
        """Raise Reject, or Ignore for now, unless executing the update would move it."""
        update: TileUpdate = block.content
        schedule = check_draft(self._blocks.view(), update, block.header.author, head)
        signatures.check_cosignatures(update, schedule, block.header.network)
        if not signatures.has_enough(self._blocks.view(), block, self._liveness_ms):
            raise Ignore("another rank is alive and has not signed")

    async def _keep_adopted(self, record: GroupRecord, key: Key) -> None:
        """Serving needs the adopted weights too, which may be older than the head's."""
        roots = {tile.weights for tile in record.adopted}
        lacking = await self._lane.run(
            lambda: [root for root in roots if not self._blobs.has(root)]
        )
        for root in lacking:
            hints = self._replay.holders(record.model, record.group)
            await self._fetcher.get(root, hints, durable=False)
        self._trails.adopt(key, roots)

    async def _keep_snapshot(self, record: GroupRecord, key: Key) -> None:
        """Make the version that a snapshot block names durable (DEC-B3)."""
        version = self._trails.find(key, record.snapshot)
        for root in version.roots if version else ():
            if not self._blobs.is_durable(root):
                array = self._blobs.open_array(root)
                await self._lane.run(self._blobs.put_array, array)
