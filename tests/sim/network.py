"""Nodes in one process: memory stores, a lossy gossip, a seed, and trio's MockClock.

Everything above the wire is the daemon's own code; the wire is a function call.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Hardware, Registration
from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    BlobReceipt,
    FinalCheckpoint,
)
from blyan_proto.codec import decode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import (
    DEVNET,
    DEVNET_SETTINGS,
    Balance,
    Genesis,
    Setting,
)
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyan_proto.validators import Validator
from blyand.chain.author import Author
from blyand.chain.follow import Follower
from blyand.chain.intake import Intake, Sources
from blyand.chain.machine import Machine
from blyand.chain.pool import Pool
from blyand.chain.swarm import Remote, Swarm
from blyand.errors import NotHere
from blyand.events import Broadcast
from blyand.finality import beacon as beacons
from blyand.finality.voter import Voter
from blyand.net.identity import peer_id_of
from blyand.poison import PoisonBox
from blyand.protocols.blocks import Fetched
from blyand.rules.chain.reconcile import Comparison, IdSet, answer
from blyand.rules.verdict import Reject
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.intents import IntentLog
from blyand.store.locks import LockStore
from blyand.store.memory import MemoryStore
from blyand.store.sets import SetStore
from blyand.store.state import State
from tests.sim.links import Links
from tests.sim.validating import SimMesh, make_voter


class InlineLane:
    """A thread lane without threads: virtual time must not pass while work is done."""

    async def run(self, fn, *args):
        await trio.lowlevel.checkpoint()
        return fn(*args)


class InlineCommit:
    """A group commit without a thread."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def submit(self, batch) -> None:
        await trio.lowlevel.checkpoint()
        self._store.write_batch(batch, sync=True)


class VirtualClock:
    """Wall time that follows trio's clock, which shows `began_s` at the beginning."""

    def __init__(self, began_s: float = 0.0) -> None:
        self._began_s = began_s

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int((trio.current_time() - self._began_s) * 1000)


@dataclass
class Wire:
    """Who hears whom, how late, and how much is lost; and what was ever shown."""

    random: random.Random
    loss: float = 0.0
    broken: float = 0.0  # share of calls that get no answer, half of them unheard
    delay_s: float = 0.02
    links: Links | None = None  # none: bundles and blobs take no time
    nodes: dict[str, SimNode] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # by peer id
    down: set[str] = field(default_factory=set)
    said: dict[tuple[object, ...], set[bytes | None]] = field(default_factory=dict)
    side: dict[str, int] = field(default_factory=dict)  # of a partition
    shown: dict[int, set[bytes]] = field(default_factory=dict)  # height -> checkpoints
    regions: dict[str, str] = field(default_factory=dict)  # node -> region
    carried: Counter[bool] = field(default_factory=Counter)  # bytes between regions?

    def others(self, name: str) -> list[str]:
        """Return who is connected to a node."""
        return [n for n in self.nodes if n != name and self.connects(name, n)]

    def connects(self, one: str, other: str) -> bool:
        sides = self.side.get(one, 0), self.side.get(other, 0)
        return not {one, other} & self.down and sides[0] == sides[1]

    def name_of(self, peer: str) -> str:
        """Return the name of a node, by itself or by its peer id."""
        return self.names.get(peer, peer)

    async def reach(self, source: str, target: str) -> SimNode:
        """Return a node after a delay. NotHere when it is not connected."""
        await trio.sleep(self.random.uniform(0, self.delay_s))
        if not self.connects(source, target):
            raise NotHere(f"{target} is not connected")
        self.may_break()
        return self.nodes[target]

    async def carry(self, source: str, target: str, size: int) -> None:
        """Wait as long as a bundle, or a piece of a blob, is under way."""
        if self.links is not None:
            await self.links.carry(source, target, size)

    def count(self, one: str, other: str, size: int) -> None:
        """Count bytes between two nodes; True stands for those between regions."""
        places = [self.regions.get(self.name_of(node)) for node in (one, other)]
        self.carried[places[0] != places[1]] += size

    def may_break(self) -> None:
        """Raise NotHere where a question, or the answer to it, is lost."""
        if self.broken and self.random.random() < self.broken / 2:
            raise NotHere("the stream broke")

    def show(self, final: FinalCheckpoint) -> None:
        """Note that a checkpoint left the node that has it."""
        checkpoint = final.checkpoint
        self.shown.setdefault(checkpoint.height, set()).add(checkpoint.id)


class SimNode:
    """One node without libp2p and without models."""

    clock = VirtualClock()

    def __init__(
        self,
        name: str,
        genesis: Genesis,
        key: SigningKey,
        wire: Wire,
        home: Path,
        store: MemoryStore | None = None,
    ) -> None:
        self.name = name
        self.home = home
        self.key = key
        self.wire = wire
        self.genesis = genesis
        self.store = store or MemoryStore()
        self.events = Broadcast()
        self.blocks = BlockStore(self.store)
        self.checkpoints = CheckpointStore(self.store)
        self.sets = SetStore(self.store)
        self.locks = LockStore(self.store)
        self.intents = IntentLog(home / "intents")
        self.voter: Voter | None = None
        self.mesh = SimMesh(self)
        self.is_lost = False  # what it signed is not known to it
        self.accused: list[tuple[object, object]] = []
        lane, clock = InlineLane(), self.clock
        self.poison = PoisonBox(home / "poison")
        self.machine = Machine(
            genesis,
            State.load(self.store),
            self.checkpoints,
            lane,
            self.events,
            self.poison,
            self.sets,
        )
        self.pool = Pool()
        self.blamed: list[str] = []

        def blame(peer: str, error: Exception) -> None:
            self.blamed.append(f"{peer}: {error}")

        self.blame = blame
        remote = self._remote()
        self.swarm = Swarm(remote)
        self.intake = Intake(
            genesis,
            self.blocks,
            InlineCommit(self.store),
            self.pool,
            self.events,
            clock,
            lane,
            self.poison,
            Sources(self.swarm.ancestors, blame),
        )
        self.follower = Follower(
            genesis,
            self.machine,
            self.blocks,
            self.pool,
            self.intake,
            lane,
            remote,
            self.swarm,
        )
        self.settled = trio.Event()
        self.settled.set()
        self.author = Author(
            key,
            self.machine,
            self.pool,
            self.intake,
            self.intents,
            clock,
            self._gossip,
            self.settled,
        )
        self._nursery: trio.Nursery

    def _remote(self) -> Remote:
        return Remote(
            peers=lambda: self.wire.others(self.name),
            archives=lambda: (),
            checkpoints=self._checkpoints,
            blocks=self._fetch,
            compare=self._compare,
            blame=self.blame,
        )

    async def _gossip(self, raw: bytes) -> None:
        await self._spread(raw, lambda node: node.intake.gossip_check)

    async def _announce(self, raw: bytes) -> None:
        self.wire.show(decode(FinalCheckpoint, raw, MAX_FINAL_CHECKPOINT_BYTES))
        await self._spread(raw, lambda node: node.follower.gossip_check)

    async def _spread(self, raw: bytes, check) -> None:
        async def deliver(target: str) -> None:
            try:
                node = await self.wire.reach(self.name, target)
            except NotHere:
                return
            try:
                await check(node)(self.name, raw)
            except (ProtocolError, Reject) as error:
                node.blame(self.name, error)

        for target in self.wire.others(self.name):
            if self.wire.random.random() >= self.wire.loss:
                self._nursery.start_soon(deliver, target)

    async def _fetch(self, peer: str, ids: Sequence[bytes]) -> Fetched:
        node = await self.wire.reach(self.name, peer)
        found = (node.blocks.get(id) for id in ids)
        return Fetched([block for block in found if block], [], len(ids))

    async def _compare(self, peer: str, own: IdSet, rounds: int) -> Comparison:
        comparison = Comparison(own, rounds)
        while request := comparison.request():
            node = await self.wire.reach(self.name, peer)
            comparison.answer(answer(node.pool.ids, request))
        return comparison

    async def _checkpoints(self, peer: str, height: int) -> Checkpoints:
        node = await self.wire.reach(self.name, peer)
        found = node.checkpoints.range(height, 64)
        for final in found:
            self.wire.show(final)
        return Checkpoints(node.machine.clock.height, found)

    def may_order(self, block: Block) -> bool:
        """Whether this validator finds a block's blobs available."""
        return True

    def receipts_for(self, blocks: Sequence[Block]) -> tuple[BlobReceipt, ...]:
        """What this validator shows for the blobs of what it proposes."""
        return ()

    async def take_receipts(self, receipts: Sequence[BlobReceipt]) -> None:
        """What it does with what others show."""
        await trio.lowlevel.checkpoint()

    def start_soon(self, fn, *args) -> None:
        """Run something until this node dies."""
        self._nursery.start_soon(fn, *args)

    @property
    def is_validator(self) -> bool:
        return bool(self.genesis.founders.weight_of(self.key.public))

    @property
    def root(self) -> bytes:
        """The state root after the newest checkpoint."""
        return self.machine.view.root

    def reborn(self, *, keep_store: bool = True, keep_intents: bool = True) -> SimNode:
        """Return this node as it starts again on what is left of its home."""
        self.intents.close()
        if not keep_intents:
            shutil.rmtree(self.home / "intents")
        again = type(self)(
            self.name,
            self.genesis,
            self.key,
            self.wire,
            self.home,
            self.store if keep_store else None,
        )
        self.wire.nodes[self.name] = again
        return again

    async def run(
        self, *, votes: bool | None = None, task_status=trio.TASK_STATUS_IGNORED
    ):
        """Live until cancelled. `votes` None: as the genesis says."""
        if self.is_validator if votes is None else votes:
            self.voter = make_voter(self, InlineLane(), self.is_lost)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for service in (self.intake.run, self.follower.run, self.author.run):
                await nursery.start(service)
            if self.voter is not None:
                await nursery.start(self.voter.run)
            task_status.started()


def make_network(
    count: int,
    seed: int,
    home: Path,
    loss: float = 0.0,
    validators: int = 1,
    settings: dict[str, int] | None = None,
    **parameters: int,
) -> tuple[Genesis, list[SimNode], Wire]:
    """Return a genesis whose first nodes are the validators, and the nodes, not running."""
    source = random.Random(seed)
    keys = [SigningKey(source.randbytes(32)) for _ in range(count)]
    numbers = {one.name: one.value for one in DEVNET_SETTINGS} | (settings or {})
    genesis = Genesis(
        version=FORMAT_VERSION,
        name="simulation",
        salt=source.randbytes(32),
        time_ms=1_699_999_999_000,
        parameters=replace(DEVNET, **{"work_bits": 0, **parameters}),
        validators=tuple(
            Validator(key.public, 1, beacons.chain_of(key.secret).tail)
            for key in keys[:validators]
        ),
        participants=tuple(registration(key) for key in keys),
        balances=tuple(Balance(key.account, 1_000) for key in keys),
        settings=tuple(Setting(*one) for one in sorted(numbers.items())),
    )
    wire = Wire(source, loss)
    for index, key in enumerate(keys):
        folder = home / f"node{index}"
        folder.mkdir(parents=True)
        wire.names[peer_id_of(key.public)] = f"node{index}"
        wire.nodes[f"node{index}"] = SimNode(f"node{index}", genesis, key, wire, folder)
    return genesis, list(wire.nodes.values()), wire


def registration(key: SigningKey) -> Registration:
    """Return what a simulated node registers with."""
    return Registration(
        version=FORMAT_VERSION,
        key=key.public,
        roles=int(Role.LEARN | Role.SERVE),
        region="",
        hardware=Hardware("cpu", 1 << 30, 1),
        bond_micro=0,
        beacon_tail=None,
    )


async def until(condition, timeout_s: float = 120.0) -> None:
    """Wait in virtual time until `condition()` holds."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.sleep(0.2)
