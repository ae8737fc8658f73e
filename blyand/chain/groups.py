"""Checking and storing blocks by the group.

One job of a thread lane checks the signatures of a group, one finds its parents, one
synced batch stores it: a thread hop or a sync for each block would cost more than the
block. An item on which our own code falls over costs that item alone (DEC-C2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.genesis import Genesis
from blyand.chain.orphans import Arrived
from blyand.chain.pool import Pool
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.events import BlockStored, Broadcast
from blyand.poison import PoisonBox, Poisoned
from blyand.rules.chain.intake import (
    Checked,
    ParentUnknown,
    Place,
    Verified,
    check_many,
    verify,
    vouch,
)
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore
from blyand.store.commit import GroupCommit
from blyand.store.schema import Arrival, Batch

GROUP = 128  # blocks of one job and one batch: 10 ms of signatures
INLINE = 4  # so few find their parents sooner on the loop than in a thread

Refusal = Reject | Ignore


class Groups:
    """Checks groups of blocks, and stores those whose parents are here."""

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
        is_registered: Callable[[bytes], bool],
        tip: Callable[[bytes], Place | None] = lambda id: None,
        lacks_history: Callable[[], bool] = lambda: False,
    ) -> None:
        """`tip` knows the ordered blocks that new ones stand on, also those that are not
        here as they were ordered before the state that this node began with."""
        self._genesis = genesis
        self._blocks = blocks
        self._commit = commit
        self._pool = pool
        self._events = events
        self._clock = clock
        self._lane = lane
        self._poison = poison
        self._is_registered = is_registered
        self._tip, self._lacks_history = tip, lacks_history
        self._under_way: dict[bytes, trio.Event] = {}

    def __contains__(self, id: bytes) -> bool:
        """True while a block is being stored."""
        return id in self._under_way

    async def check(
        self, blocks: list[Block], is_final: bool
    ) -> list[Checked | Refusal]:
        """Return the verdict on each block. Over a bug of ours, one is Poisoned."""
        verdicts: list[Checked | Refusal] = []
        now_ms = None if is_final else self._clock.now_ms()

        def item() -> tuple[bytes, bytes]:
            block = blocks[len(verdicts)]
            return block.id, encode_block(block)

        while len(verdicts) < len(blocks):
            rest = blocks[len(verdicts) :]
            try:
                with self._poison.containing("block", item):
                    await self._lane.run(
                        check_many, rest, self._genesis, now_ms, verdicts
                    )
            except Poisoned as error:
                verdicts.append(error)
        return verdicts

    async def store(self, group: Sequence[Arrived]) -> dict[bytes, Refusal]:
        """Store those of a group, ascending by height, whose parents are here."""
        await self._undisturbed(group)
        fresh = {
            one.id: one
            for one in group
            if not self._blocks.serves(one.id, one.is_final)
        }
        done = trio.Event()
        for id in fresh:
            self._under_way[id] = done
        try:
            refused, verified, writes = await self._find_parents(list(fresh.values()))
            with trio.CancelScope(shield=True):  # on disk and not in the pool is lost
                if writes:
                    await self._commit.submit(writes)
            for block in verified:
                try:
                    self._pool_in(fresh[block.id])
                except Poisoned as error:
                    refused[block.id] = error
        finally:
            for id in fresh:
                del self._under_way[id]
            done.set()
        for block in verified:
            if block.id not in refused:
                self._events.publish(BlockStored(block.block))
        return refused

    async def _undisturbed(self, group: Sequence[Arrived]) -> None:
        """Wait until nobody else stores one of these blocks or of their parents."""
        names = {
            name
            for one in group
            for name in (one.id, *one.checked.block.header.parents)
        }
        while under_way := names & self._under_way.keys():
            await self._under_way[under_way.pop()].wait()

    async def _find_parents(
        self, group: list[Arrived]
    ) -> tuple[dict[bytes, Refusal], list[Verified], Batch]:
        verdicts: list[Verified | Refusal] = []
        writes: Batch = []

        def item() -> tuple[bytes, bytes]:
            one = group[len(verdicts)]
            return one.id, encode_block(one.checked.block)

        while len(verdicts) < len(group):
            try:
                with self._poison.containing("block", item):
                    if len(group) <= INLINE:
                        self._verify(group, verdicts, writes)
                    else:
                        await self._lane.run(self._verify, group, verdicts, writes)
            except Poisoned as error:
                verdicts.append(error)
        refused = {
            one.id: verdict
            for one, verdict in zip(group, verdicts)
            if not isinstance(verdict, Verified)
        }
        return refused, [one for one in verdicts if isinstance(one, Verified)], writes

    def _verify(
        self, group: list[Arrived], verdicts: list[Verified | Refusal], writes: Batch
    ) -> None:
        """Append the verdict on each block of a group that has none, and its writes."""
        places = {
            verdict.id: _place(verdict)
            for verdict in verdicts
            if isinstance(verdict, Verified)
        }
        rest = group[len(verdicts) :]
        # A parent that comes later is no lower than its child, which is a lie.
        later = {one.id: _place(one.checked) for one in rest}

        def place_of(id: bytes) -> Place | None:
            here = places.get(id) or later.get(id) or self._blocks.place_of(id)
            return here or self._tip(id)

        now_ms = self._clock.now_ms()
        for one in rest:
            try:
                verified = self._verified(one, place_of)
            except (Reject, Ignore) as error:
                del later[one.id]
                verdicts.append(error)
                continue
            arrival = None if one.is_final else Arrival(now_ms, one.peer)
            writes += self._blocks.batch([verified], arrival, self._is_registered)
            places[one.id] = later.pop(one.id)
            verdicts.append(verified)

    def _verified(
        self, one: Arrived, place_of: Callable[[bytes], Place | None]
    ) -> Verified:
        try:
            return verify(one.checked, place_of)
        except ParentUnknown:
            if one.is_final and self._lacks_history():
                return vouch(one.checked)
            raise

    def _pool_in(self, one: Arrived) -> None:
        """Let the next checkpoint order a block, unless a checkpoint already does."""
        block = one.checked.block
        with self._poison.containing("block", lambda: (one.id, encode_block(block))):
            if not one.is_final:
                self._pool.add(block, keep=not one.peer)


def _place(one: Checked | Verified) -> Place:
    header = one.block.header
    return Place(header.chain, header.height)
