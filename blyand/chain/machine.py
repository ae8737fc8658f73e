"""Executed state: applies final checkpoints one after the other; drafts and tries others.

Execution itself is `rules.chain.execute`; this is its door to the disk. What was executed
for a draft or a trial is kept, so that it is not executed again once it is final. A
checkpoint that does not give the state root it names stops the machine: reads go on
(DEC-C2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    next_beacon,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyand.compute import Threads
from blyand.errors import Halted
from blyand.events import Broadcast, CheckpointFinalised
from blyand.poison import PoisonBox, Poisoned
from blyand.rules.chain import validators
from blyand.rules.chain.checkpoint import (
    Draft,
    check_contents,
    check_place,
    moment_of,
    signers_of,
)
from blyand.rules.chain.execute import Executed, Moment, begin, execute
from blyand.rules.chain.order import order
from blyand.rules.records import CLOCK, Clock
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View
from blyand.store.checkpoints import CheckpointStore
from blyand.store.sets import SetStore
from blyand.store.state import State
from blyand.store.statements import rows_of

logger = logging.getLogger(__name__)

TRIALS_KEPT = 4  # results of drafts and trials of one height


@dataclass(frozen=True)
class _Trial:
    """What executing a checkpoint gave."""

    blocks: tuple[Block, ...]  # in the rule's order
    done: Executed
    root: bytes


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
        sets: SetStore,
    ) -> None:
        self._poison = poison
        self._sets = sets
        self._trials: dict[bytes, _Trial] = {}  # by checkpoint id, of the next height
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
            first = begin(genesis)
            checkpoints.put_state(first.changes, rows_of(0, [], first.postings))
            state.apply(first.changes)
        sets.keep(validators.signers(state), validators.successors(state))

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

    async def draft(self, wish: Draft) -> tuple[Checkpoint, tuple[Block, ...]]:
        """Return a checkpoint that may follow the newest one, and its blocks in order.

        Poisoned names the block on which a rule fell over; leave it out. Halted.
        Ignore when that height is final already and only waits to be executed.
        """
        async with self._turn:
            parent = await self._check_open()
            clock = self.clock
            signed = validators.predecessors(self._state)
            voters = wish.voters
            if voters is None:
                voters = parent.votes if parent is not None else ()
            ordered = tuple(await self._lane.run(order, wish.blocks))
            made = Checkpoint(
                version=FORMAT_VERSION,
                network=self.genesis.id,
                height=clock.height + 1,
                parent=self._last_id,
                round=wish.round,
                proposer=wish.proposer,
                time_ms=wish.time_ms,
                beacon=next_beacon(clock.beacons[-1], wish.preimage),
                preimage=wish.preimage,
                blocks=tuple(block.id for block in ordered),
                receipts=wish.receipts,
                state_root=bytes(32),
                validators_root=validators.signers(self._state).root,
                next_validators_root=validators.successors(self._state).root,
                parent_signers=signers_of(signed, voters),
            )
            trial = await self._try(made, ordered)
            made = replace(made, state_root=trial.root)
            self._keep(made.id, trial)
            return made, ordered

    async def check(self, checkpoint: Checkpoint, blocks: Sequence[Block]) -> None:
        """Check a proposed checkpoint by every rule and by executing it, or Reject.

        Not whether its blocks may be ordered: that takes more than state. Poisoned,
        Halted and Ignore as `draft`.
        """
        async with self._turn:
            await self._check_open()
            check_place(self._state, self.genesis, self._last_id, checkpoint)
            if checkpoint.id in self._trials:
                return
            ordered = await self._lane.run(
                check_contents, self.genesis, checkpoint, blocks
            )
            trial = await self._try(checkpoint, ordered)
            if trial.root != checkpoint.state_root:
                raise Reject("the checkpoint gives another state root here")
            self._keep(checkpoint.id, trial)

    async def apply(self, final: FinalCheckpoint, blocks: Sequence[Block]) -> None:
        """Execute a finalised checkpoint; durable on return.

        Raises Reject when it does not follow the newest one, Halted when its result is
        not the one it names: after that this node neither executes nor signs.
        """
        async with self._turn:
            self._check_running()
            checkpoint = final.checkpoint
            check_place(self._state, self.genesis, self._last_id, checkpoint)
            trial = self._trials.get(checkpoint.id)
            if trial is None:
                ordered = await self._lane.run(
                    check_contents, self.genesis, checkpoint, blocks
                )
                try:
                    trial = await self._try(checkpoint, ordered)
                except Poisoned as error:
                    self._halt(checkpoint, f"cannot be executed here: {error}")
            if trial.root != checkpoint.state_root:
                self._halt(checkpoint, "gives another state root here")
            done = trial.done
            results = [(int(o.error is not None), o.error or "") for o in done.outcomes]
            rows = await self._lane.run(self._state.writes, done.changes)
            moved = [(outcome.block, outcome.postings) for outcome in done.outcomes]
            rows = [*rows, *rows_of(checkpoint.height, moved, done.postings)]
            commit = self._checkpoints.commit_checkpoint
            await self._lane.run(commit, final, done.changes, results, rows)
            self._state.apply(done.changes)
            self._last_id = checkpoint.id
            self._trials.clear()
            await self._lane.run(
                self._sets.keep,
                validators.signers(self._state),
                validators.successors(self._state),
            )
        for outcome in done.outcomes:
            if outcome.error:
                logger.info("block %s: %s", outcome.block.hex()[:16], outcome.error)
        self._events.publish(CheckpointFinalised(final, trial.root, trial.blocks))

    async def _try(self, checkpoint: Checkpoint, ordered: Sequence[Block]) -> _Trial:
        moment = moment_of(self._state, self.genesis, checkpoint)
        done = await self._execute(ordered, moment)
        root = await self._lane.run(self._state.preview, done.changes)
        return _Trial(tuple(ordered), done, root)

    def _keep(self, id: bytes, trial: _Trial) -> None:
        while len(self._trials) >= TRIALS_KEPT:
            self._trials.pop(next(iter(self._trials)))
        self._trials[id] = trial

    async def _check_open(self) -> FinalCheckpoint | None:
        """Return the newest checkpoint; Ignore when the next one is final already."""
        self._check_running()
        height = self.clock.height
        if await self._lane.run(self.stored, height + 1) is not None:
            raise Ignore(f"checkpoint {height + 1} is final already")
        return await self._lane.run(self.stored, height)

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

    async def jump(self, finish: Callable[[], None]) -> None:
        """Go over to the state of a later checkpoint, which `finish()` makes the executed
        one on the disk (blocking)."""
        async with self._turn:
            self._check_running()
            with trio.CancelScope(shield=True):
                await self._lane.run(finish)
                await self._lane.run(self._state.reload)
                self._trials.clear()
                final = self._checkpoints.at(self._checkpoints.executed_height)
                assert final is not None
                self._last_id = final.checkpoint.id
        self._events.publish(CheckpointFinalised(final, self._state.root))

    def _check_running(self) -> None:
        if self.halted:
            raise Halted(self.halted)

    def _halt(self, checkpoint: Checkpoint, why: str) -> NoReturn:
        self.halted = (
            f"checkpoint {checkpoint.height} {why}; execution stopped. Compare versions "
            "with your peers and restart"
        )
        logger.error("BROKEN %s", self.halted)
        raise Halted(self.halted)
