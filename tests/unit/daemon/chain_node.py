"""One node's chain without a network: what peers say is set by the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.signing import Purpose, SigningKey
from blyand.chain.author import Author
from blyand.chain.follow import Follower
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.chain.swarm import Remote, Swarm
from blyand.errors import NotHere
from blyand.events import Broadcast
from blyand.finality import beacon as beacons
from blyand.poison import PoisonBox
from blyand.protocols.blocks import Fetched
from blyand.rules.chain.checkpoint import Draft
from blyand.rules.chain.reconcile import Comparison, IdSet, answer
from blyand.rules.chain.validators import revealed_by, turns
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.intents import IntentLog
from blyand.store.memory import MemoryStore
from blyand.store.sets import SetStore
from blyand.store.state import State
from tests.sim.network import InlineCommit, InlineLane
from tests.unit.daemon.chain_world import (
    START_MS,
    beat,
    genesis_of,
    key,
    replace,
    sign_block,
)


def beacon_of(key: SigningKey) -> beacons.BeaconChain:
    """Return a validator's hash chain."""
    return beacons.chain_of(key.secret)


def settled() -> trio.Event:
    """Return the event of a node that may sign."""
    event = trio.Event()
    event.set()
    return event


class Wall:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.ms = START_MS + 1_000

    def now_ms(self) -> int:
        return self.ms


class Node:
    """Intake, machine, follower and author over stores in memory."""

    def __init__(self, home: Path, me: int = 0, nodes: int = 3, **changed: Any) -> None:
        self.keys = [key(index) for index in range(nodes)]
        self.beacon = beacon_of(self.keys[0])
        self.genesis = genesis_of(self.keys, self.beacon.tail, **changed)
        self.home, self.me = home, me
        self.given = self._given
        self.store = MemoryStore()
        self.intents = IntentLog(home / f"intents{me}")
        self.clock = Wall()
        self.blamed: list[tuple[str, str]] = []
        self.published: list[bytes] = []
        self.peers: list[str] = []
        self.archives: list[str] = []
        # peer -> what it gives; a callable is asked
        self.blocks_of: dict[str, Any] = {}
        self.finals_of: dict[str, Any] = {}
        self.pending_of: dict[str, Any] = {}
        self.pruned_of: dict[str, set[bytes]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.open()

    def open(self) -> None:
        """Build the parts on what is stored, as a start does."""
        self.events = Broadcast()
        self.blocks = BlockStore(self.store)
        self.checkpoints = CheckpointStore(self.store)
        self.sets = SetStore(self.store)
        self.poison = PoisonBox(self.home / f"poison{self.me}")
        self.lane: Any = InlineLane()
        self.machine = Machine(
            self.genesis,
            State.load(self.store),
            self.checkpoints,
            self.lane,
            self.events,
            self.poison,
            self.sets,
        )
        self.pool = Pool()
        self.intake = Intake(
            self.genesis,
            self.blocks,
            self.commit(),
            self.pool,
            self.events,
            self.clock,
            self.lane,
            self.poison,
            Sources(self._blocks, self._blame),
        )
        remote = Remote(
            peers=lambda: list(self.peers),
            archives=lambda: self.archives,
            checkpoints=self._finals,
            blocks=lambda peer, ids: self.given(peer, ids),
            compare=self._compare,
            blame=self._blame,
        )
        self.swarm = Swarm(remote)
        self.follower = Follower(
            self.genesis,
            self.machine,
            self.blocks,
            self.pool,
            self.intake,
            self.lane,
            remote,
            self.swarm,
        )
        self.author = Author(
            self.keys[self.me],
            self.machine,
            self.pool,
            self.intake,
            self.intents,
            self.clock,
            self._publish,
            settled(),
        )

    def commit(self) -> Any:
        """Return what writes the stored blocks."""
        return InlineCommit(self.store)

    @asynccontextmanager
    async def running(self, *services: Callable[..., Any]):
        """Run the given services (intake's at least)."""
        async with trio.open_nursery() as nursery:
            for service in services or (self.intake.run,):
                await nursery.start(service)
            yield
            nursery.cancel_scope.cancel()

    # What a lone validator would do

    async def final(self, *blocks: Block, **changed: Any) -> FinalCheckpoint:
        """Return the next checkpoint over `blocks`; `changed` fields are lies."""
        clock, view = self.machine.clock, self.machine.view
        proposer = changed.pop("by", None) or turns(view).proposer_of(0)
        key = next(key for key in self.keys if key.public == proposer)
        preimage = beacons.chain_of(key.secret).before(revealed_by(view, proposer))
        time_ms = changed.pop("time_ms", clock.time_ms + 250)
        round = changed.pop("round", 0)
        made, _ = await self.machine.draft(
            Draft(blocks, time_ms, proposer, preimage, round)
        )
        self.machine._trials.clear()  # it is executed as by one that follows
        return self.sealed(replace(made, **changed))

    def sealed(
        self, checkpoint: Checkpoint, /, by: SigningKey | None = None, **changed: Any
    ) -> FinalCheckpoint:
        """Return a checkpoint with its votes; `changed` fields of the statement are lies.

        `by`: the only one who votes, instead of all validators.
        """
        keys = [k for k in self.keys if self.genesis.founders.weight_of(k.public)]
        statement = VoteStatement(
            FORMAT_VERSION,
            VoteStage.PRECOMMIT,
            checkpoint.height,
            checkpoint.round,
            checkpoint.id,
        )
        statement = replace(statement, **changed)
        return FinalCheckpoint(
            checkpoint,
            tuple(
                Vote(
                    statement,
                    key.public,
                    key.sign(Purpose.CHECKPOINT_VOTE, self.genesis.id, statement),
                )
                for key in ([by] if by else keys)
            ),
        )

    async def order(self, *blocks: Block, **changed: Any) -> FinalCheckpoint:
        """Store blocks, order them in one checkpoint and execute it."""
        for block in sorted(blocks, key=lambda block: block.header.height):
            await self.intake.submit(block)
        final = await self.final(*blocks, **changed)
        await self.machine.apply(final, blocks)
        for block in blocks:
            self.pool.remove(block.id)
        return final

    # What peers do

    def _blame(self, peer: str, error: Exception) -> None:
        self.blamed.append((peer, str(error)))

    async def _publish(self, raw: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append(raw)

    async def _answer(self, table: dict[str, Any], what: str, peer: str, args: Any):
        self.asked.append((what, peer, args))
        await trio.lowlevel.checkpoint()
        if peer not in table:
            raise NotHere(peer)
        given = table[peer]
        return await given(args) if callable(given) else given

    async def _blocks(self, peer: str, ids: Sequence[bytes]) -> Sequence[Block]:
        given = await self._answer(self.blocks_of, "blocks", peer, list(ids))
        waiting = self.pending_of.get(peer, ())
        also = [] if callable(waiting) else [b for b in waiting if isinstance(b, Block)]
        return [block for block in [*given, *also] if block.id in ids]

    async def _given(self, peer: str, ids: Sequence[bytes]) -> Fetched:
        pruned = [id for id in ids if id in self.pruned_of.get(peer, ())]
        blocks = [b for b in await self._blocks(peer, ids) if b.id not in pruned]
        return Fetched(blocks, pruned, len(ids))

    async def _finals(self, peer: str, height: int) -> Checkpoints:
        given = await self._answer(self.finals_of, "finals", peer, height)
        if isinstance(given, Checkpoints):
            return given
        newest = max((one.checkpoint.height for one in given), default=0)
        return Checkpoints(
            newest, tuple(one for one in given if one.checkpoint.height >= height)
        )

    async def _finals_alone(self, peer: str, height: int) -> Sequence[FinalCheckpoint]:
        return (await self._finals(peer, height)).checkpoints

    async def _compare(self, peer: str, own: IdSet, rounds: int) -> Comparison:
        given = await self._answer(self.pending_of, "pending", peer, None)
        theirs = IdSet(one if isinstance(one, bytes) else one.id for one in given)
        comparison = Comparison(own, rounds)
        while request := comparison.request():
            comparison.answer(answer(theirs, request))
        return comparison


def run(main: Callable[[], Any]) -> None:
    """Run an async test in virtual time."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait in virtual time until a condition holds."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.02)


# One node that has checkpoints, and one that follows


def block(node: Node, n: int = 0, author: int = 1) -> Block:
    return sign_block(node.genesis, node.keys[author], beat(load=n), sequence=n + 1)


async def grow(source, count, start=0):
    """Make checkpoints with one block each; return (finals, blocks)."""
    blocks = [block(source, n) for n in range(start, start + count)]
    return [await source.order(one) for one in blocks], blocks


def gives(node, peer, finals=(), blocks=(), pending=()):
    node.peers.append(peer)
    node.finals_of[peer], node.blocks_of[peer] = list(finals), list(blocks)
    node.pending_of[peer] = list(pending)


def following(node):
    return node.running(node.intake.run, node.follower.run)
