"""A simulated node that trains: blobs, holder, primary, delivery and learner on a wire.

Blobs and bundles travel by function call, learners give seeded deltas after a pause of
virtual time; everything between is the daemon's own code.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileRoots, TileUpdate
from blyan_proto.checkpoint import BlobReceipt
from blyan_proto.checkpoint import Receipts as Message
from blyan_proto.codec import encode
from blyan_proto.protocols.cosign import DEADLINE_S
from blyan_proto.protocols.delta import Bundle, Receipt
from blyan_proto.types import Role, members
from blyan_tile import tblock
from blyan_tile.create import CreateJob, create
from blyan_tile.delta import encode_group
from blyan_tile.jobs import Progress
from blyan_tile.learner import GroupDelta, LearnJob, LearnResult
from blyand.chain.orderable import Orderable
from blyand.chain.receipts import Receipts
from blyand.compute import GivenUp
from blyand.data.custody import Custody
from blyand.election.members import Claims, Member
from blyand.errors import TooSlow
from blyand.events import HeadMoved
from blyand.protocols.cosign import Answer, check_answer, check_draft
from blyand.protocols.delta import check_bundle
from blyand.protocols.fetch import Fetcher
from blyand.rules.model.model import heads_root, layout_for, require_model
from blyand.rules.records import GROUPS, NODES, RUNS, Group, RunRecord
from blyand.store.blobs import BlobStore
from blyand.store.medium import Medium
from blyand.store.memory import MemoryStore
from blyand.store.rounds import Rounds
from blyand.training.adopter import Adopter
from blyand.training.cosign import Cosigner, Ranks
from blyand.training.delivery import Delivery, Reach
from blyand.training.doubting import Doubting
from blyand.training.holder import Holder
from blyand.training.journal import Journal
from blyand.training.judge import Judge
from blyand.training.keeping import Keeping
from blyand.training.learner import Learner
from blyand.training.logbook import Logbook
from blyand.training.primary import Primary
from blyand.training.receipting import Receipting
from blyand.training.scorer import Scorer
from blyand.training.waiting import Blocks
from blyand.training.watching import Watcher
from tests.sim.carrying import Carrier
from tests.sim.network import InlineLane, SimNode, registration

Judged = Callable[[bytes, np.ndarray], np.ndarray]  # heads root, windows


class Unsynced(Medium):
    """Files that need not survive a power cut."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, name: str) -> None:
        pass


class BlobWire:
    """The blobs client, by function call."""

    def __init__(self, node: TrainNode) -> None:
        self._node = node
        self.got: set[bytes] = set()

    @asynccontextmanager
    async def open(self, peer: str, blob: bytes) -> AsyncIterator[BlobTalk]:
        other = await self._node.reach(peer)
        yield BlobTalk(self._node, other, blob, self.got)


class BlobTalk:
    """A conversation with a peer about a blob."""

    def __init__(
        self, own: TrainNode, other: TrainNode, blob: bytes, got: set[bytes]
    ) -> None:
        self._own, self._other = own, other
        self._blob, self._got = blob, got

    async def outline(self) -> tblock.Outline:
        outline = self._other.blobs.outline(self._blob)
        self._got.add(self._blob)
        return outline

    async def ask(self, first: int, count: int) -> None: ...

    async def leaf(self, index: int, room: memoryview) -> None:
        wire = self._own.wire
        await wire.carry(self._other.name, self._own.name, len(room))
        room[:] = self._other.blobs.read_leaf(self._blob, index)
        wire.count(self._other.name, self._own.name, len(room))


class Trainer:
    """Stands for the worker process: seeded deltas, unless given up.

    All inner steps together take `pace_s`; a job of fewer takes less.
    """

    def __init__(self) -> None:
        self.pace_s = 0.2
        self.unsteady = 0.0  # share by which a round takes more, or less
        self.cut_off = 0  # tokens of steps that were given up
        self.jobs: list[LearnJob] = []
        self.given_up = 0
        self.learn: Callable[[LearnJob, Any], LearnResult] = made_up
        self._scope: trio.CancelScope | None = None

    async def call(self, job: Any, report: Any = None) -> Any:
        if isinstance(job, CreateJob):
            return create(job, lambda progress: None)
        self.jobs.append(job)
        steps = job.steps or job.run.inner_steps
        source = random.Random(f"{job.learner.hex()} {job.round}")
        pace_s = self.pace_s * (1 + source.uniform(-self.unsteady, self.unsteady))
        step = 0
        with trio.CancelScope() as self._scope:
            for step in range(steps):
                await trio.sleep(pace_s / job.run.inner_steps)
                report(Progress(step + 1, steps, ""))
            return self.learn(job, report)
        self.given_up += 1
        self.cut_off += step * job.run.batch * job.run.sequence
        raise GivenUp("given up")

    async def give_up(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


def made_up(job: LearnJob, report: Any) -> LearnResult:
    """Return a delta for every group of a job, drawn from (learner, round, group)."""
    layout = layout_for(job.model)
    deltas, held = [], members(job.held)
    steps = job.steps or job.run.inner_steps
    tokens = steps * job.run.batch * job.run.sequence
    for group in layout.groups:
        if group.index not in held:
            continue
        place = int.from_bytes(job.learner[:6], "big"), job.round, group.index
        source = np.random.default_rng(place)
        change = [
            (source.standard_normal(tile.shape) / 64).astype(np.float32)
            for tile in group.tiles
        ]
        nothing = [None] * len(change)
        encoded, _ = encode_group(group, change, job.run, job.round, nothing)
        made = GroupDelta(group.index, tuple(encoded), tokens, bytes(32), bytes(32))
        deltas.append(made)
    return LearnResult(tuple(deltas), True, steps, tokens, 5_000_000, ())


class TrainNode(SimNode):
    """A node that holds, learns and aggregates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        lane = InlineLane()
        folder = self.home / "blobs"
        self.blobs = BlobStore(folder, medium=Unsynced(folder))
        self.trainer = Trainer()
        self.judged: Judged = lambda root, windows: windows[:, 0] * 1e-3
        self.make = self.author.make  # what the primary makes blocks with
        self.moves: list[HeadMoved] = []
        self.not_ordered: set[bytes] = set()  # updates that this validator leaves out
        self.orders_updates = True
        self.roles = int(Role.LEARN | Role.SERVE)
        account, view = self.key.account, lambda: self.machine.view
        self.wanted = BlobWire(self)
        self.fetcher = Fetcher(
            self.wanted, self.blobs, lane, lambda: self.wire.others(self.name)
        )
        self.carrier = Carrier(self, self.fetcher, lane)
        self.holder = Holder(
            account,
            Blocks(
                view,
                self.blocks.get,
                lambda: iter(self.pool),
                self.pool.__contains__,
                self.author.abandon,
            ),
            self.blobs,
            self.fetcher,
            self.carrier.donors.bring,
            lane,
            self.events,
            self.peer_of,
            self.genesis.parameters.liveness_span_ms,
            lambda block, computed: self.doubting.note(block, computed),
        )
        self.doubting = Doubting(
            view,
            self.pool.__contains__,
            lambda *a, **more: self.make(*a, **more),
            self.events,
        )
        self.judge = Judge(
            lambda voters: self.key if voters.weight_of(self.key.public) else None,
            view,
            self.blocks.get,
            self.holder.is_right,
            self.author.make,
            self.events,
        )
        self.rounds = Rounds(MemoryStore())
        self.journal = Journal(
            view,
            lambda: {},
            self.blobs,
            lane,
            self.events,
            self._evaluate,
            self.fetcher.get,
            account,
            self.rounds,
            lane,
        )
        self.keeping = keeping = Keeping(view, self.rounds, lane, self.clock)
        self.cosigner = Cosigner(
            self.key,
            self.genesis.id,
            view,
            self.genesis.parameters.liveness_span_ms,
            self.holder,
            lane,
            self.intents,
            Ranks(self.ask, self.peer_of),
        )
        self.primary = Primary(
            self.key,
            self.genesis.id,
            view,
            self.holder,
            self.blobs,
            lane,
            self.intents,
            self.cosigner,
            lambda *a, **more: self.make(*a, **more),
            self.events,
            keeping.heard,
            Watcher(view, self.blocks.get, self.blobs, lane, self.events),
            lambda account: account == self.key.account
            or self.peer_of(account) in self.wire.others(self.name),
        )
        reach = Reach(
            push=keeping.pushing(lambda peer, bundle: self.push(peer, bundle)),
            carry=self.carrier.carry,
            take=self.primary.take,
            peer_of=self.peer_of,
            is_connected=lambda peer: peer in self.wire.others(self.name),
        )
        self.receipts = Receipts(self.genesis.id, view, self.pool.get, lane)
        self.receipting = Receipting(
            self.key,
            self.genesis.id,
            view,
            self.pool.__contains__,
            self.carrier.donors.bring,
            self.receipts.of,
            self.give,
            self.events,
        )
        self.orderable = Orderable(
            view,
            self.blobs.has,
            self._want,
            self.receipts,
            self.genesis.parameters.liveness_span_ms,
        )
        self.learner = Learner(
            account,
            view,
            self.blocks.get,
            self.holder,
            self.blobs,
            self.trainer,
            Delivery(
                self.key,
                self.genesis.id,
                self.holder,
                reach,
                self.journal,
                self.carrier.ways,
                self.carrier.passed,
            ),
            self.fetcher.get,
            self.events,
            self.journal,
            self.home / "residuals",
            "cpu",
            1,
            Logbook(self.home / "podl", self.key, self.genesis.id, lane),
        )
        self._scope = trio.CancelScope()

    async def losses(self, pinned: Any, windows: np.ndarray) -> np.ndarray:
        """Return what each window costs a version: half a nat, and what `judged` says."""
        await trio.lowlevel.checkpoint()
        root = heads_root(list(pinned.tiles))
        return 0.5 + self.judged(root, windows)

    async def _evaluate(self, pinned: Any, text: Any, length: int) -> float:
        await trio.lowlevel.checkpoint()
        return 5.0

    async def reach(self, peer: str) -> TrainNode:
        """Return a connected node after the wire's delay. NotHere."""
        node = await self.wire.reach(self.name, peer)
        assert isinstance(node, TrainNode)
        return node

    def peer_of(self, account: bytes) -> str | None:
        """Return the name of a registered account's node."""
        if NODES.get(self.machine.view, account) is None:
            return None
        nodes = self.wire.nodes.values()
        return next((n.name for n in nodes if n.key.account == account), None)

    async def push(self, peer: str, bundle: Bundle) -> Receipt:
        """Hand a bundle to a peer, as /blyan/delta/1 does."""
        node = await self.reach(peer)
        size = sum(len(encode(delta)) for delta in bundle.deltas)
        await self.wire.carry(self.name, peer, size)
        check_bundle(bundle, self.genesis.id)
        receipt = await node.primary.take(bundle)
        self.wire.may_break()
        self.wire.count(self.name, peer, len(encode(bundle)) + len(encode(receipt)))
        return receipt

    async def give(self, receipt: BlobReceipt) -> None:
        """Broadcast a receipt."""
        self.receipts.put(receipt)
        raw = encode(Message((receipt,)))
        await self._spread(raw, lambda node: node.receipts.gossip_check)

    async def ask(self, peer: str, update: TileUpdate) -> Answer:
        """Ask a peer for its signature, as /blyan/cosign/1 does."""
        node = await self.reach(peer)
        check_draft(update, self.key.public, self.genesis.id)
        with trio.move_on_after(DEADLINE_S):
            answer = await node.cosigner.sign(update)
            self.wire.may_break()
            check_answer(answer, update, node.key.public, self.genesis.id)
            return answer
        raise TooSlow("no signature in time")

    def may_order(self, block: Block) -> bool:
        return self._is_wanted(block) and self.orderable.may_order(block)

    def receipts_for(self, blocks: Sequence[Block]) -> tuple[BlobReceipt, ...]:
        return self.orderable.receipts_for(blocks)

    async def take_receipts(self, receipts: Sequence[BlobReceipt]) -> None:
        await self.receipts.take(receipts)

    def _is_wanted(self, block: Block) -> bool:
        if isinstance(block.content, TileUpdate) and not self.orders_updates:
            return False
        return block.id not in self.not_ordered

    def blocks_of(self, payload: type) -> list[Block]:
        """Return the blocks here, ordered and pending, with such a payload."""
        ordered = (
            self.blocks.get(id)
            for height in range(1, self.machine.clock.height + 1)
            if (final := self.checkpoints.at(height))
            for id in final.checkpoint.blocks
        )
        every = [*ordered, *self.pool]
        return [b for b in every if b is not None and isinstance(b.content, payload)]

    async def _watch(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with self.events.subscribe(HeadMoved, capacity=4096) as facts:
            task_status.started()
            async for fact in facts:
                self.moves.append(fact)

    def rolled_back(self) -> set[int]:
        """Return the groups that went to two versions of one round, or went back."""
        found, newest = set(), dict[int, tuple[int, bytes]]()
        for move in self.moves:
            round, update = newest.get(move.group, (-1, b""))
            if move.round < round or move.round == round and move.update != update:
                found.add(move.group)
            newest[move.group] = (move.round, move.update)
        return found

    async def run(
        self, *, votes: bool | None = None, task_status=trio.TASK_STATUS_IGNORED
    ):
        def view():
            return self.machine.view

        claims = registration(self.key)
        member = Member(
            self.key.account,
            Claims(
                self.key.public,
                self.roles,
                self.wire.regions.get(self.name, ""),
                claims.hardware,
            ),
            self.genesis,
            view,
            self.holder.held,
            self.author.make,
            lambda: True,
            self.events,
        )
        custody = Custody(view, self.blobs.has, self._want, self.events)
        services = [
            self._watch,
            self.fetcher.run,
            self.holder.run,
            self.carrier.edge.run,
            self.primary.run,
            self.receipting.run,
            self.doubting.run,
            self.judge.run,
            self.journal.run,
            member.run,
            custody.run,
            self.learner.run,
        ]
        if self.is_validator if votes is None else votes:
            services.append(Adopter(view, self.author.make, self.events).run)
            scorer = Scorer(
                self.key.account,
                view,
                self.journal.held_out,
                self.losses,
                InlineLane(),  # type: ignore[arg-type]
                lambda *a, **more: self.make(*a, **more),
                self.events,
                self.home,
            )
            services.append(scorer.run)
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._run_chain, votes)
                for service in services:
                    await nursery.start(service)
                task_status.started()

    async def _run_chain(
        self, votes: bool | None, task_status=trio.TASK_STATUS_IGNORED
    ) -> None:
        await super().run(votes=votes, task_status=task_status)

    def _want(self, blob: bytes, account: bytes) -> None:
        peer = self.peer_of(account)
        self.fetcher.want(blob, [peer] if peer else [])

    def stop(self) -> None:
        """End at once, as a kill does."""
        self._scope.cancel()
        self.wire.down.add(self.name)

    def again(self) -> TrainNode:
        """Return this stopped node as it starts again on its disk."""
        self.intents.close()
        self.blobs.close()
        made = TrainNode(
            self.name, self.genesis, self.key, self.wire, self.home, self.store
        )
        self.wire.nodes[self.name] = made
        self.wire.down.discard(self.name)
        return made

    # What a test looks at

    def run_record(self, run: bytes) -> RunRecord:
        found = RUNS.get(self.machine.view, run)
        assert found is not None
        return found

    def closed(self, run: bytes) -> int:
        """Return how many rounds of a run are final here."""
        found = RUNS.get(self.machine.view, run)
        return found.closed if found else 0

    def heads(self, model: bytes) -> list[Group]:
        """Return the finalised heads of all groups."""
        return list(GROUPS.scan(self.machine.view, model))

    def adopted(self, model: bytes) -> int:
        """Return how many rounds are behind the adopted heads."""
        return require_model(self.machine.view, model).adopted_round

    def adopted_run(self, model: bytes) -> bytes | None:
        """Return the run whose heads are adopted."""
        return require_model(self.machine.view, model).adopted_run

    def has(self, tiles: Iterable[TileRoots]) -> bool:
        """True when all these tiles are here and intact."""
        roots = {root for t in tiles for root in (t.weights, t.momentum) if root}
        return all(self.blobs.has(root) and self.blobs.verify(root) for root in roots)
