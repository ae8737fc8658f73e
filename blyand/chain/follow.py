"""Following finalised checkpoints: by gossip while we keep up, by sync when we do not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

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
from blyand.chain.intake import Intake
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.compute import Threads
from blyand.errors import Halted, Unavailable
from blyand.net.gossip import Verdict
from blyand.rules.chain.intake import check_final
from blyand.rules.verdict import Ignore, Reject
from blyand.store.blocks import BlockStore

logger = logging.getLogger(__name__)

POLL_S = 2.0  # how often a peer is asked for what gossip may have lost
MAX_WAITING = 256  # checkpoints ahead of ours kept in memory


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
        self._wake = trio.Event()
        self._asked = 0

    @property
    def behind(self) -> int:
        """How many checkpoints we know of and have not applied."""
        return max(self._waiting, default=0) - self._machine.clock.height

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Say whether a gossiped checkpoint is forwarded, and keep it when it is."""
        try:
            final = decode(FinalCheckpoint, raw, MAX_FINAL_CHECKPOINT_BYTES)
            height = final.checkpoint.height
            if height <= self._machine.clock.height or height in self._waiting:
                return Verdict.IGNORE
            await self._lane.run(check_final, final, self._genesis)
        except (ProtocolError, Reject) as error:
            logger.info("refused a checkpoint of %s: %s", peer, error)
            return Verdict.REJECT
        self._keep(final, peer)
        return Verdict.ACCEPT

    def peer_is_at(self, peer: str, height: int) -> None:
        """A peer said how far it is; look at once when that is further than we are."""
        if height > self._machine.clock.height:
            self._wake.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Apply what is here; ask peers for what is not."""
        task_status.started()
        while True:
            try:
                while await self._advance():
                    pass
            except Halted:
                await trio.sleep_forever()
            with trio.move_on_after(POLL_S) as waited:
                await self._wake.wait()
            self._wake = trio.Event()
            if waited.cancelled_caught or self._gap():
                await self._poll()

    def _keep(self, final: FinalCheckpoint, peer: str) -> None:
        height = final.checkpoint.height
        if height <= self._machine.clock.height + MAX_WAITING:
            self._waiting[height] = (final, peer)
        self._wake.set()

    def _gap(self) -> bool:
        following = self._machine.clock.height + 1
        return following not in self._waiting

    async def _advance(self) -> bool:
        """Apply the next checkpoint if it and its blocks can be had."""
        height = self._machine.clock.height + 1
        for old in [known for known in self._waiting if known < height]:
            del self._waiting[old]
        if height not in self._waiting:
            return False
        final, peer = self._waiting[height]
        try:
            blocks = await self._collect(final, peer)
            await self._machine.apply(final, blocks)
        except Reject as error:
            del self._waiting[height]
            logger.warning("checkpoint %d refused: %s", height, error)
            self._remote.blame(peer, error)
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

    async def _fetch(self, peer: str, ids: list[bytes]) -> None:
        try:
            for start in range(0, len(ids), MAX_IDS):
                got = await self._remote.blocks(peer, ids[start : start + MAX_IDS])
                for block in sorted(got, key=lambda b: b.header.height):
                    await self._intake.submit(block, peer)
        except (Unavailable, Ignore) as error:
            logger.debug("%s gave not all blocks: %s", peer, error)
        except (Reject, ProtocolError) as error:
            self._remote.blame(peer, error)

    async def _poll(self) -> None:
        """Ask one peer after the other, in turn, for checkpoints after ours."""
        peers = self._remote.peers()
        if not peers:
            return
        self._asked += 1
        peer = peers[self._asked % len(peers)]
        try:
            height = self._machine.clock.height
            for final in await self._remote.checkpoints(peer, height + 1):
                await self._lane.run(check_final, final, self._genesis)
                self._keep(final, peer)
            for block in await self._remote.pending(peer):
                await self._intake.submit(block, peer)
        except (Unavailable, Ignore) as error:
            logger.debug("%s did not say what is new: %s", peer, error)
        except (Reject, ProtocolError) as error:
            self._remote.blame(peer, error)
