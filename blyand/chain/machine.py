"""Executed state: applies finalised checkpoints one after the other, and previews them.

Execution itself is `rules.chain.execute`; this is its door to the disk. A checkpoint
that does not give the state root it names stops the machine: reads go on (DEC-C2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.checkpoint import Checkpoint, FinalCheckpoint, next_beacon
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyand.chain.pool import size_of
from blyand.compute import Threads
from blyand.errors import Halted
from blyand.events import Broadcast, CheckpointFinalised
from blyand.poison import PoisonBox, Poisoned
from blyand.rules.chain import validators
from blyand.rules.chain.execute import Executed, Moment, begin, execute
from blyand.rules.chain.order import order
from blyand.rules.records import CLOCK, Clock
from blyand.rules.verdict import Reject
from blyand.rules.view import View
from blyand.store.checkpoints import CheckpointStore
from blyand.store.state import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """What a checkpoint would give: its place, its order, the state root after it."""

    height: int
    parent: bytes
    beacon: bytes
    blocks: tuple[Block, ...]  # in the rule's order
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

    @property
    def lane(self) -> Threads:
        """The threads for what may block: the chain's files, signatures, execution."""
        return self._lane

    def stored(self, height: int) -> FinalCheckpoint | None:
        """Return a final checkpoint that is on disk, executed or not."""
        return self._checkpoints.at(height)

    def times_at(self, heights: Iterable[int]) -> dict[int, int]:
        """Return the chain times of those checkpoints that are on disk. Blocking."""
        times = {0: self.genesis.time_ms}
        for height in sorted(set(heights) - {0}):
            final = self._checkpoints.at(height) if height < 2**63 else None
            if final is not None:
                times[height] = final.checkpoint.time_ms
        return times

    async def preview(
        self, blocks: Sequence[Block], time_ms: int, proposer: bytes, preimage: bytes
    ) -> Preview:
        """Return what a checkpoint over `blocks` would say.

        Poisoned names the block on which a rule fell over; leave it out. Halted.
        Reject when that height is final already and only waits to be executed.
        """
        async with self._turn:
            self._check_running()
            clock = self.clock
            if await self._lane.run(self.stored, clock.height + 1) is not None:
                raise Reject(f"checkpoint {clock.height + 1} is final already")
            moment = Moment(clock.height + 1, time_ms, self.genesis, proposer, preimage)
            ordered = await self._lane.run(order, blocks)
            done = await self._execute(ordered, moment)
            root = await self._lane.run(self._state.preview, done.changes)
            return Preview(
                moment.height,
                self._last_id,
                next_beacon(clock.beacons[-1], preimage),
                tuple(ordered),
                root,
            )

    async def apply(self, final: FinalCheckpoint, blocks: Sequence[Block]) -> None:
        """Execute a finalised checkpoint; durable on return.

        Raises Reject when it does not follow the newest one, Halted when its result is
        not the one it names: after that this node neither executes nor signs.
        """
        async with self._turn:
            self._check_running()
            checkpoint = final.checkpoint
            self._check_place(checkpoint)
            self._check_limits(blocks)
            ordered = await self._lane.run(order, blocks)
            if tuple(block.id for block in ordered) != checkpoint.blocks:
                raise Reject("the checkpoint's blocks are not in the rule's order")
            moment = Moment(
                checkpoint.height,
                checkpoint.time_ms,
                self.genesis,
                checkpoint.proposer,
                checkpoint.preimage,
            )
            try:
                done = await self._execute(ordered, moment)
            except Poisoned as error:
                self._halt(checkpoint, f"cannot be executed here: {error}")
            root = await self._lane.run(self._state.preview, done.changes)
            if root != checkpoint.state_root:
                self._halt(checkpoint, "gives another state root here")
            results = [(int(o.error is not None), o.error or "") for o in done.outcomes]
            rows = await self._lane.run(self._state.writes, done.changes)
            commit = self._checkpoints.commit_checkpoint
            await self._lane.run(commit, final, done.changes, results, rows)
            self._state.apply(done.changes)
            self._last_id = checkpoint.id
        for outcome in done.outcomes:
            if outcome.error:
                logger.info("block %s: %s", outcome.block.hex()[:16], outcome.error)
        self._events.publish(CheckpointFinalised(final, root, tuple(ordered)))

    async def _execute(self, blocks: Sequence[Block], moment: Moment) -> Executed:
        begun: list[Block] = []

        def item() -> tuple[bytes, bytes]:
            return (begun[-1].id, encode_block(begun[-1])) if begun else (b"", b"")

        with self._poison.containing("block", item):
            try:
                return await self._lane.run(execute, self._state, blocks, moment, begun)
            except ProtocolError as error:
                # The blocks were checked: it is our record that does not encode.
                raise RuntimeError("executing made an impossible record") from error

    def _check_running(self) -> None:
        if self.halted:
            raise Halted(self.halted)

    def _check_place(self, checkpoint: Checkpoint) -> None:
        clock = self.clock
        if checkpoint.height != clock.height + 1 or checkpoint.parent != self._last_id:
            raise Reject("the checkpoint does not follow the newest one")
        if checkpoint.time_ms <= clock.time_ms:
            raise Reject("the checkpoint's time does not grow")
        if checkpoint.validators_root != validators.signers(self._state).root:
            raise Reject("the checkpoint is signed by another set than state says")
        if checkpoint.next_validators_root != validators.successors(self._state).root:
            raise Reject("the checkpoint names another next set than state says")
        if not validators.opens(self._state, checkpoint.proposer, checkpoint.preimage):
            raise Reject("the checkpoint reveals another preimage than was committed")
        if checkpoint.beacon != next_beacon(clock.beacons[-1], checkpoint.preimage):
            raise Reject("the checkpoint's beacon is not the rule's")

    def _check_limits(self, blocks: Sequence[Block]) -> None:
        limits = self.genesis.parameters
        if len(blocks) > limits.checkpoint_blocks:
            raise Reject("the checkpoint orders more blocks than the genesis allows")
        if sum(size_of(block) for block in blocks) > limits.checkpoint_bytes:
            raise Reject("the checkpoint orders more bytes than the genesis allows")

    def _halt(self, checkpoint: Checkpoint, why: str) -> NoReturn:
        self.halted = (
            f"checkpoint {checkpoint.height} {why}; execution stopped. Compare versions "
            "with your peers and restart"
        )
        logger.error("BROKEN %s", self.halted)
        raise Halted(self.halted)
