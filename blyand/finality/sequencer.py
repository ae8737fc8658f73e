"""The sequencer of the genesis: orders pending blocks into checkpoints and signs them.

It stands where a validator set will vote, with the same record, the same intent log and
the same availability rule. docs/consensus.md says what that does and does not promise.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import Genesis
from blyan_proto.signing import Purpose, SigningKey
from blyand.clock import Clock
from blyand.compute import Threads
from blyand.errors import DiskFull, Halted
from blyand.finality.beacon import BeaconChain
from blyand.poison import Poisoned
from blyand.rules.records import Clock as ChainClock
from blyand.rules.verdict import Reject
from blyand.store.intents import IntentLog

logger = logging.getLogger(__name__)

SETTLE_S = 5.0  # how long peers may take to show a checkpoint that this node signed
FULL_S = 2.0  # before a disk that was full is tried again
FRESH_S = 2.0  # how long a node without memory of its votes listens first


@dataclass(frozen=True)
class Chain:
    """What the sequencer needs of the chain; handed over by the daemon."""

    clock: Callable[[], ChainClock]
    revealed: Callable[[], bytes]  # the last link of this node's hash chain
    ready: Callable[[Callable[[Block], bool], int, int], list[Block]]
    preview: Callable[..., Awaitable[Any]]  # chain.machine.Machine.preview
    apply: Callable[[FinalCheckpoint, list[Block]], Awaitable[None]]
    drop: Callable[[bytes], None]  # a pending block that cannot be executed
    changed: Callable[
        [], Awaitable[None]
    ]  # returns when there may be something to order


@dataclass(frozen=True)
class Availability:
    """Blobs: what is here, and asking for what is not (DEC-A4)."""

    needs: Callable[[Block], list[bytes]]
    has: Callable[[bytes], bool]
    want: Callable[[bytes, bytes], None]  # blob, account of the block's author


class Sequencer:
    """Makes checkpoints. Runs only on the node that the genesis names."""

    def __init__(
        self,
        genesis: Genesis,
        key: SigningKey,
        chain: Chain,
        blobs: Availability,
        intents: IntentLog,
        clock: Clock,
        publish: Callable[[bytes], Awaitable[None]],
        beacon: BeaconChain,
        lane: Threads | None = None,
    ) -> None:
        self._genesis = genesis
        self._key = key
        self._chain = chain
        self._blobs = blobs
        self._intents = intents
        self._clock = clock
        self._publish = publish
        self._beacon = beacon
        self._lane = lane or Threads("finality", 1)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Order what is pending, at the genesis's pace."""
        task_status.started()
        await self._settle()
        limits = self._genesis.parameters
        made = trio.current_time()
        while True:
            idle = limits.idle_interval_ms / 1000
            with trio.move_on_at(made + idle):
                await self._chain.changed()
            await trio.sleep_until(made + limits.checkpoint_interval_ms / 1000)
            blocks = self._chain.ready(
                self._is_available, limits.checkpoint_blocks, limits.checkpoint_bytes
            )
            if not blocks and trio.current_time() < made + idle:
                await trio.sleep(limits.checkpoint_interval_ms / 1000)
                continue
            made = trio.current_time()
            try:
                await self._make(blocks)
            except Halted:
                await trio.sleep_forever()
            except Poisoned as error:
                self._chain.drop(error.identity)
            except Reject as error:  # a peer showed this height in the meantime
                logger.warning("a checkpoint of this node is not needed: %s", error)
            except (
                DiskFull
            ) as error:  # a vote that was noted is never given: see _round
                logger.warning("no checkpoint is made: %s", error)
                await trio.sleep(FULL_S)

    async def _settle(self) -> None:
        """Wait, after a restart, for what peers know of our own signatures (DEC-A9).

        A vote may have been signed for a height that our database does not have. It left
        this process only if the checkpoint was stored before; so with an intact database
        it never left, and the next round may decide otherwise. With a lost one, peers
        have it: wait until they show it.
        """
        while self._intents.fresh or self._intents.damaged:
            height = self._chain.clock().height
            await trio.sleep(FRESH_S)  # a restored home: peers may know more than we do
            if self._chain.clock().height == height:
                break
        voted, _ = self._intents.highest_vote() or (0, 0)
        while self._chain.clock().height + 1 < voted:
            logger.warning(
                "this node signed checkpoint %d and holds only %d: it signs nothing until "
                "a peer shows the rest",
                voted,
                self._chain.clock().height,
            )
            await trio.sleep(SETTLE_S)
        if self._chain.clock().height + 1 == voted:
            await trio.sleep(SETTLE_S)  # let a peer show it, if one has it

    def _round(self, height: int) -> int:
        """Return the first consensus round of a height in which nothing was promised."""
        voted, round = self._intents.highest_vote() or (0, 0)
        return round + 1 if voted == height else 0

    def _is_available(self, block: Block) -> bool:
        missing = [id for id in self._blobs.needs(block) if not self._blobs.has(id)]
        for blob in missing:
            self._blobs.want(blob, block.header.account)
        return not missing

    async def _make(self, blocks: list[Block]) -> None:
        clock = self._chain.clock()
        time_ms = max(clock.time_ms + 1, self._clock.now_ms())
        preimage = self._beacon.before(self._chain.revealed())
        preview = await self._chain.preview(blocks, time_ms, self._key.public, preimage)
        round = self._round(preview.height)
        signers = self._genesis.founders.root
        checkpoint = Checkpoint(
            version=FORMAT_VERSION,
            network=self._genesis.id,
            height=preview.height,
            parent=preview.parent,
            round=round,
            proposer=self._key.public,
            time_ms=time_ms,
            beacon=preview.beacon,
            preimage=preimage,
            blocks=tuple(block.id for block in preview.blocks),
            receipts=(),
            state_root=preview.state_root,
            validators_root=signers,
            next_validators_root=signers,
        )
        # Durable before signed (DEC-A9), stored before published.
        await self._lane.run(
            self._intents.record_vote,
            preview.height,
            round,
            VoteStage.PRECOMMIT,
            checkpoint.id,
        )
        final = FinalCheckpoint(checkpoint, (self._vote(checkpoint),))
        await self._chain.apply(final, list(preview.blocks))
        await self._publish(encode(final))

    def _vote(self, checkpoint: Checkpoint) -> Vote:
        statement = VoteStatement(
            FORMAT_VERSION,
            VoteStage.PRECOMMIT,
            checkpoint.height,
            checkpoint.round,
            checkpoint.id,
        )
        signature = self._key.sign(Purpose.CHECKPOINT_VOTE, self._genesis.id, statement)
        return Vote(statement, self._key.public, signature)
