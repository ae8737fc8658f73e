"""Executed state: applies finalised checkpoints one after the other, and previews them.

Execution itself is `rules.chain.execute`; this is its door to the disk. A checkpoint
that does not give the state root it names stops the machine: reads go on (DEC-C2).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.checkpoint import Checkpoint, FinalCheckpoint, beacon_link, next_beacon
from blyan_proto.genesis import Genesis
from blyand.compute import Threads
from blyand.errors import Halted
from blyand.events import Broadcast, CheckpointFinalised
from blyand.poison import PoisonBox, Poisoned
from blyand.rules.chain.execute import Moment, Outcome, begin, execute
from blyand.rules.chain.order import order
from blyand.rules.records import CLOCK, Clock
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay, View
from blyand.store.checkpoints import CheckpointStore
from blyand.store.state import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """What a checkpoint would give: its place, and the state root after it."""

    height: int
    parent: bytes
    beacon: bytes
    state_root: bytes


class Machine:
    """The one writer of executed state."""

    def __init__(
        self,
        genesis: Genesis,
        state: State,
        checkpoints: CheckpointStore,
        lane: Threads,
        events: Broadcast,
        poison: PoisonBox,
    ) -> None:
        self._poison = poison
        self.genesis = genesis
        self._state = state
        self._checkpoints = checkpoints
        self._lane = lane
        self._events = events
        self._turn = trio.Lock()
        self.halted: str | None = None
        latest = checkpoints.at(checkpoints.executed_height)
        self._last_id = latest.checkpoint.id if latest else genesis.id
        if CLOCK.get(state) is None:
            first = begin(genesis).changes
            checkpoints.put_state(first)
            state.apply(first)

    @property
    def view(self) -> View:
        """The executed state, as of the newest checkpoint."""
        return self._state

    @property
    def clock(self) -> Clock:
        """Height, median time and beacons of the newest checkpoint."""
        clock = CLOCK.get(self._state)
        assert clock is not None
        return clock

    @property
    def last_id(self) -> bytes:
        """Id of the newest checkpoint; of the genesis at height 0."""
        return self._last_id

    async def preview(
        self, blocks: Sequence[Block], time_ms: int, preimage: bytes
    ) -> Preview:
        """Return what a checkpoint over `blocks`, in this order, would say.

        Poisoned names the block on which a rule fell over; leave it out.
        """
        async with self._turn:
            clock = self.clock
            moment = Moment(clock.height + 1, time_ms, self.genesis)
            changed, _ = await self._execute(blocks, moment, preimage)
            root = await self._lane.run(self._state.preview, changed.changes)
            return Preview(
                moment.height,
                self._last_id,
                next_beacon(clock.beacons[-1], preimage),
                root,
            )

    async def apply(self, final: FinalCheckpoint, blocks: Sequence[Block]) -> None:
        """Execute a finalised checkpoint; durable on return.

        Raises Reject when it does not follow the newest one, Halted when its result is
        not the one it names: after that this node neither executes nor signs.
        """
        async with self._turn:
            if self.halted:
                raise Halted(self.halted)
            checkpoint = final.checkpoint
            self._check_place(checkpoint, blocks)
            moment = Moment(checkpoint.height, checkpoint.time_ms, self.genesis)
            try:
                changed, outcomes = await self._execute(
                    blocks, moment, checkpoint.preimage
                )
            except Poisoned as error:
                self._halt(checkpoint, f"cannot be executed here: {error}")
            root = await self._lane.run(self._state.preview, changed.changes)
            if root != checkpoint.state_root:
                self._halt(checkpoint, "gives another state root here")
            results = [(int(o.error is not None), o.error or "") for o in outcomes]
            await self._lane.run(
                self._checkpoints.commit_checkpoint, final, changed.changes, results
            )
            self._state.apply(changed.changes)
            self._last_id = checkpoint.id
        for outcome in outcomes:
            if outcome.error:
                logger.info("block %s: %s", outcome.block.hex()[:16], outcome.error)
        self._events.publish(CheckpointFinalised(final, root, tuple(blocks)))

    async def _execute(
        self, blocks: Sequence[Block], moment: Moment, preimage: bytes
    ) -> tuple[Overlay, list[Outcome]]:
        begun: list[Block] = []
        with self._poison.containing(
            "block", lambda: (begun[-1].id, encode_block(begun[-1]))
        ):
            return await self._lane.run(
                execute, self._state, blocks, moment, preimage, begun
            )

    def _check_place(self, checkpoint: Checkpoint, blocks: Sequence[Block]) -> None:
        clock = self.clock
        if checkpoint.height != clock.height + 1 or checkpoint.parent != self._last_id:
            raise Reject("the checkpoint does not follow the newest one")
        if checkpoint.time_ms <= clock.time_ms:
            raise Reject("the checkpoint's time does not grow")
        if beacon_link(checkpoint.preimage) != clock.revealed:
            raise Reject("the checkpoint reveals another preimage than was committed")
        if checkpoint.beacon != next_beacon(clock.beacons[-1], checkpoint.preimage):
            raise Reject("the checkpoint's beacon is not the rule's")
        if tuple(block.id for block in order(blocks)) != checkpoint.blocks:
            raise Reject("the checkpoint's blocks are not in the rule's order")
        limits = self.genesis.parameters
        if len(blocks) > limits.checkpoint_blocks:
            raise Reject("the checkpoint orders more blocks than the genesis allows")

    def _halt(self, checkpoint: Checkpoint, why: str) -> NoReturn:
        self.halted = (
            f"checkpoint {checkpoint.height} {why}; execution stopped. Compare versions "
            "with your peers and restart"
        )
        logger.error("BROKEN %s", self.halted)
        raise Halted(self.halted)
