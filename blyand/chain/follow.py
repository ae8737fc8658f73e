"""Following finalised checkpoints: by gossip while we keep up, by sync when we do not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    FinalCheckpoint,
)
from blyan_proto.codec import decode
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyan_proto.protocols.blocks import MAX_IDS
from blyand.chain.expiry import Expiry
from blyand.chain.intake import Intake
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.compute import Threads
from blyand.errors import Halted, TooSlow, Unavailable
from blyand.net.gossip import Verdict
from blyand.rules.chain.intake import check_final
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)

POLL_S = 2.0  # how often a peer is asked for what gossip may have lost
PATIENCE_S = 10.0  # how long one answer may take before another peer is asked
MAX_WAITING = 256  # checkpoints ahead of ours kept in memory

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """What following needs of the network."""

    peers: Callable[[], Sequence[str]]
    checkpoints: Callable[[str, int], Awaitable[Sequence[FinalCheckpoint]]]
    blocks: Callable[[str, Sequence[bytes]], Awaitable[Sequence[Block]]]
    pending: Callable[[str], Awaitable[Sequence[Block]]]
    blame: Callable[[str, Exception], None]


class Follower:
    """Applies checkpoints in order as they and their blocks become available."""

    def __init__(
        self,
        genesis: Genesis,
        machine: Machine,
        blocks: BlockStore,
        pool: Pool,
        intake: Intake,
        lane: Threads,
        remote: Remote,
    ) -> None:
        self._genesis = genesis
        self._machine = machine
        self._blocks = blocks
        self._pool = pool
        self._intake = intake
        self._lane = lane
        self._remote = remote
        self._waiting: dict[int, tuple[FinalCheckpoint, str]] = {}
        self._wake = trio.Event()  # there may be something to apply
        self._ask = trio.Event()  # there may be something to fetch
        self._got_news = False  # the peer asked last had newer checkpoints
        self._asked = 0
        self._level: set[str] = set()  # peers that had nothing newer than we
        self._expiry = Expiry(machine, blocks, pool, lane)

    @property
    def behind(self) -> int:
        """How many checkpoints we know of and have not applied."""
        return max(self._waiting, default=0) - self._machine.clock.height

    async def level(self) -> None:
        """Return once every connected peer, and at least one, had nothing newer."""
        self._level.clear()
        while True:
            peers = set(self._remote.peers())
            if peers and peers <= self._level:
                return
            await trio.sleep(POLL_S)

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped checkpoint is forwarded, and keep it when it is.

        Raises ProtocolError or Reject for what the forwarder should have refused.
        """
        try:
            final = await self._lane.run(_decoded, raw)
            height = final.checkpoint.height
            if height <= self._machine.clock.height or height in self._waiting:
                return Verdict.IGNORE
            await self._lane.run(check_final, final, self._genesis)
        except (ProtocolError, Reject) as error:
            logger.info("refused a checkpoint of %s: %s", peer, error)
            raise
        self._keep(final, peer)
        return Verdict.ACCEPT

    def peer_is_at(self, peer: str, height: int) -> None:
        """A peer said how far it is; look at once when that is further than we are."""
        if height > self._machine.clock.height:
            self._ask.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Apply what is here; ask peers for what is not. A slow peer delays neither."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_asking)
            task_status.started()
            while True:
                self._wake = trio.Event()
                try:
                    while await self._advance():
                        pass
                except Halted:
                    nursery.cancel_scope.cancel()
                await self._expiry.sweep()
                if self._is_behind():
                    self._ask.set()
                with trio.move_on_after(POLL_S):
                    await self._wake.wait()
        await trio.sleep_forever()  # halted: reads go on

    async def _keep_asking(self) -> None:
        while True:
            self._ask = trio.Event()
            await self._poll()
            with trio.move_on_after(POLL_S):
                await self._ask.wait()

    def _keep(self, final: FinalCheckpoint, peer: str) -> None:
        height = final.checkpoint.height
        if height <= self._machine.clock.height + MAX_WAITING:
            self._waiting[height] = (final, peer)
        self._wake.set()

    def _is_behind(self) -> bool:
        """True when the next checkpoint is missing and somebody should have it."""
        following = self._machine.clock.height + 1
        return following not in self._waiting and bool(self._waiting or self._got_news)

    async def _advance(self) -> bool:
        """Apply the next checkpoint if it and its blocks can be had."""
        height = self._machine.clock.height + 1
        for old in [known for known in self._waiting if known < height]:
            del self._waiting[old]
        final, peer = self._waiting.get(height, (None, ""))
        if final is None:
            # Ours already, and to be executed again (DEC-D4)?
            final = await self._lane.run(self._machine.stored, height)
        if final is None:
            return False
        try:
            blocks = await self._collect(final, peer)
            await self._machine.apply(final, blocks)
        except Reject as error:
            self._waiting.pop(height, None)
            if self._machine.clock.height < height:
                # Those who forwarded it saw that the sequencer signed it, no more.
                logger.warning("checkpoint %d refused: %s", height, error)
            return False
        except (Unavailable, Ignore) as error:
            logger.info("checkpoint %d waits for blocks: %s", height, error)
            return False
        self._waiting.pop(height, None)
        for block in blocks:
            self._pool.remove(block.id)
        return True

    async def _collect(self, final: FinalCheckpoint, source: str) -> list[Block]:
        """Return the checkpoint's blocks, fetching those that are not here."""
        ids = final.checkpoint.blocks
        if any(self._is_ordered(id, final.checkpoint.height) for id in ids):
            raise Reject("the checkpoint orders a block a second time")
        for peer in dict.fromkeys([source, *self._remote.peers()]):
            missing = [id for id in ids if not self._blocks.has(id)]
            if not missing:
                break
            if peer:
                await self._fetch(peer, missing)
        blocks = [self._blocks.get(id) for id in ids]
        if any(block is None for block in blocks):
            raise Ignore("no peer has all of its blocks yet")
        return [block for block in blocks if block is not None]

    def _is_ordered(self, id: bytes, height: int) -> bool:
        outcome = self._blocks.outcome(id)
        return outcome is not None and outcome.height < height

    async def _fetch(self, peer: str, ids: list[bytes]) -> None:
        try:
            for start in range(0, len(ids), MAX_IDS):
                wanted = ids[start : start + MAX_IDS]
                got = await _in_time(self._remote.blocks, peer, wanted)
                await self._take(got, peer, is_final=True)
        except Unavailable as error:
            logger.debug("%s gave not all blocks: %s", peer, error)
        except (Reject, ProtocolError) as error:
            self._remote.blame(peer, error)

    async def _take(
        self, blocks: Sequence[Block], peer: str, *, is_final: bool = False
    ) -> None:
        """Take in what a peer gave; a block that cannot be used holds up no other."""
        for block in sorted(blocks, key=lambda block: block.header.height):
            try:
                await self._intake.submit(block, peer, is_final=is_final)
            except Ignore as error:
                logger.debug("a block of %s waits: %s", peer, error)

    async def _poll(self) -> None:
        """Ask one peer after the other, in turn, for what is new."""
        self._got_news = False
        peers = self._remote.peers()
        if not peers:
            return
        self._asked += 1
        peer = peers[self._asked % len(peers)]
        try:
            height = self._machine.clock.height
            newer = await _in_time(self._remote.checkpoints, peer, height + 1)
            for final in newer:
                await self._lane.run(check_final, final, self._genesis)
                self._keep(final, peer)
            self._got_news = bool(newer)
            pending = await _in_time(self._remote.pending, peer)
            await self._take(pending, peer)
            if not newer:  # those that left are forgotten
                self._level = (self._level & set(peers)) | {peer}
        except Unavailable as error:
            logger.debug("%s did not say what is new: %s", peer, error)
        except (Reject, ProtocolError) as error:
            self._remote.blame(peer, error)


async def _in_time(ask: Callable[..., Awaitable[T]], *args: object) -> T:
    """Await a peer's answer; TooSlow when it does not come."""
    with trio.move_on_after(PATIENCE_S):
        return await ask(*args)
    raise TooSlow(f"no answer within {PATIENCE_S:g} s")


def _decoded(raw: bytes) -> FinalCheckpoint:
    return decode(FinalCheckpoint, raw, MAX_FINAL_CHECKPOINT_BYTES)
