"""A long chain made beforehand: blocks and checkpoints in the database of a home.

The genesis names a validator that no node runs; its key is here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Heartbeat
from blyan_proto.checkpoint import (
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.genesis import DEVNET, Balance, Genesis
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.validators import Validator
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.clock import SystemClock
from blyand.events import Broadcast
from blyand.finality.beacon import BeaconChain
from blyand.poison import PoisonBox
from blyand.rules.chain.checkpoint import Draft
from blyand.rules.chain.validators import revealed_by
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import open_store
from blyand.store.sets import SetStore
from blyand.store.state import State
from tests.sim.network import InlineCommit, InlineLane, registration
from tests.unit.daemon.chain_world import sign_block

AUTHORS = 16
PER_CHECKPOINT = 500


class Unsynced:
    """A database whose writes reach the disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(path)

    def write_batch(self, batch: Any, *, sync: bool) -> None:
        self._store.write_batch(batch, sync=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Maker:
    """Validator and authors of one chain."""

    step_ms = 250  # between two checkpoints

    def __init__(self) -> None:
        keys = [SigningKey(bytes([7, n]) * 16) for n in range(AUTHORS + 1)]
        self.validator, self.authors = keys[0], keys[1:]
        self.beacon = BeaconChain(self.validator.secret)
        member = Validator(self.validator.public, 1, self.beacon.tail)
        self.genesis = Genesis(
            version=FORMAT_VERSION,
            name="bench",
            salt=bytes(32),
            time_ms=time.time_ns() // 1_000_000 - 600_000,
            parameters=replace(DEVNET, work_bits=0),
            validators=(member,),
            participants=tuple(registration(key) for key in keys),
            balances=tuple(Balance(key.account, 1_000) for key in keys),
        )

    async def fill(self, database: Path, poison: Path, count: int) -> None:
        """Write `count` blocks and the checkpoints that order them."""
        store: Any = Unsynced(database)
        lane: Any = InlineLane()
        events, box = Broadcast(), PoisonBox(poison)
        blocks = BlockStore(store)
        machine = Machine(
            self.genesis,
            State.load(store),
            CheckpointStore(store),
            lane,
            events,
            box,
            SetStore(store),
        )
        commit: Any = InlineCommit(store)
        intake = Intake(
            self.genesis,
            blocks,
            commit,
            Pool(),
            events,
            SystemClock(),
            lane,
            box,
            Sources(None, None),  # type: ignore[arg-type]
        )
        try:
            for start in range(0, count, PER_CHECKPOINT):
                made = [
                    self._block(machine, number)
                    for number in range(start, min(count, start + PER_CHECKPOINT))
                ]
                for block in made:
                    await intake.submit(block, "bench", is_final=True)
                await machine.apply(await self._final(machine, made), made)
        finally:
            store.close()

    def _block(self, machine: Machine, number: int) -> Block:
        author = self.authors[number % AUTHORS]
        return sign_block(
            self.genesis,
            author,
            Heartbeat(FORMAT_VERSION, None, b"", number % 1_000_000),
            sequence=1 + number // AUTHORS,
            anchor_height=machine.clock.height,
            anchor=machine.last_id,
            time_ms=machine.clock.time_ms,
        )

    async def _final(self, machine: Machine, made: list[Block]) -> FinalCheckpoint:
        clock = machine.clock
        preimage = self.beacon.before(revealed_by(machine.view, self.validator.public))
        checkpoint, _ = await machine.draft(
            Draft(made, clock.time_ms + self.step_ms, self.validator.public, preimage)
        )
        statement = VoteStatement(
            FORMAT_VERSION, VoteStage.PRECOMMIT, checkpoint.height, 0, checkpoint.id
        )
        signed = self.validator.sign(
            Purpose.CHECKPOINT_VOTE, self.genesis.id, statement
        )
        vote = Vote(statement, self.validator.public, signed)
        return FinalCheckpoint(checkpoint, (vote,))
