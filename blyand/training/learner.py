"""Learning: each round, train what this node holds in a worker and hand in the deltas.

A learner owns nothing that agreement depends on; its residuals are local files that may
vanish (DEC-B12 … B14). Where a rank does not answer, the bundle goes to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION, PPM
from blyan_proto.digest import Domain, digest
from blyan_proto.errors import ProtocolError
from blyan_proto.framing import PREFIX_BYTES
from blyan_proto.protocols.delta import (
    Bundle,
    Delta,
    Entry,
    Manifest,
    Receipt,
    Verdict,
)
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.types import Role, bitmap, members
from blyan_tile.layout import Layout
from blyan_tile.learner import GroupFiles, LearnJob, LearnResult
from blyan_tile.residual import Settled
from blyand.compute import Worker
from blyand.errors import ComputeFault, Unavailable
from blyand.events import Broadcast, CheckpointFinalised, HeadMoved
from blyand.rules.model.election import ranks, seat_of
from blyand.rules.model.model import layout_for, require_model
from blyand.rules.records import DATASETS, RUNS, SCHEDULES, RunRecord, Schedule, Seat
from blyand.rules.view import View
from blyand.store.blobs import BlobStore
from blyand.training.holder import Holder
from blyand.training.journal import Journal

logger = logging.getLogger(__name__)

AGAIN_S = 0.3
LOOK_S = 0.5
MAX_NAN_ROUNDS = 3  # DEC-B16


@dataclass(frozen=True)
class Reach:
    """How bundles and blobs get to and from others."""

    push: Callable[[str, Bundle], Awaitable[Receipt]]
    take: Callable[[Bundle], Awaitable[Receipt]]  # when we are the primary ourselves
    peer_of: Callable[[bytes], str | None]  # account -> peer, None when unknown
    is_connected: Callable[[str], bool]
    fetch: Callable[[bytes], Awaitable[None]]  # a blob, from anyone


@dataclass(frozen=True)
class Round:
    """One round as this learner sees it."""

    record: RunRecord
    schedule: Schedule
    layout: Layout
    groups: frozenset[int]  # those we hold and have a seat for


class Learner:
    """Joins every open run of the models that this node holds."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        view: Callable[[], View],
        block: Callable[[bytes], Block | None],
        holder: Holder,
        blobs: BlobStore,
        worker: Worker,
        reach: Reach,
        events: Broadcast,
        journal: Journal,
        residuals: Path,
        device: str,
        threads: int,
    ) -> None:
        self._key = key
        self._network = network
        self._view = view
        self._block = block
        self._holder = holder
        self._blobs = blobs
        self._worker = worker
        self._reach = reach
        self._events = events
        self._journal = journal
        self._residuals = residuals
        self._device = device
        self._threads = threads
        self._resume = trio.Event()
        self._resume.set()
        self._nan_rounds = 0
        self._cancel: trio.CancelScope | None = None
        self.status = "no run is open"

    def pause(self) -> None:
        """Stop taking part, at once; a round under way is given up."""
        self._resume = trio.Event()
        self.status = "stopped on this node; `blyanctl train start` joins again"
        if self._cancel is not None:
            self._cancel.cancel()

    def resume(self) -> None:
        """Take part again."""
        self._nan_rounds = 0
        self._resume.set()

    @property
    def paused(self) -> bool:
        return not self._resume.is_set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Train round after round, as the chain opens them."""
        task_status.started()
        with self._events.subscribe(CheckpointFinalised, HeadMoved) as facts:
            while True:
                await self._resume.wait()
                with trio.CancelScope() as self._cancel:
                    await self._look()
                with trio.move_on_after(LOOK_S):
                    await facts.receive()

    async def _look(self) -> None:
        """Train the round that is open, if it is ours to train."""
        record = next((r for r in RUNS.scan(self._view()) if not r.finished), None)
        if record is None:
            self.status = "no run is open"
            return
        turn = self._round_of(record)
        if turn is None:
            return
        try:
            result = await self._learn(turn)
            await self._hand_in(turn, result)
        except (ComputeFault, ProtocolError, Unavailable) as error:
            self.status = f"round {turn.schedule.round} failed here: {error}"
            logger.warning("%s", self.status)
            await trio.sleep(LOOK_S)

    def _round_of(self, record: RunRecord) -> Round | None:
        """Return the round to train now; None, with the reason in `status`, if none."""
        view = self._view()
        model = require_model(view, record.run.model)
        layout = layout_for(model.model)
        held = self._holder.held(model.id)
        shared = {group.index for group in layout.shared_groups}
        if not shared <= held:
            missing = len(shared - held)
            self.status = f"waiting for {missing} groups that every node holds"
            return None
        rounds = {self._rounds(record, group) for group in held}
        round = min(rounds)
        if round >= record.run.rounds:
            self.status = f"all {record.run.rounds} rounds are trained"
            return None
        schedule = SCHEDULES.get(view, record.id, round)
        if schedule is None:
            behind = round - record.run.rounds_ahead - 1
            self.status = (
                f"paused: round {round} opens when round {behind} is finalised; is the "
                "sequencer reachable?"
            )
            return None
        seat = seat_of(schedule, self._key.account)
        if seat is None or not seat.roles & Role.LEARN:
            self.status = f"round {round} was scheduled without this node"
            return None
        groups = held & members(seat.held)
        if any(self._rounds(record, group) != round for group in groups):
            self.status = f"waiting for updates of round {round}"
            return None
        return Round(record, schedule, layout, groups)

    def _rounds(self, record: RunRecord, group: int) -> int:
        head = self._holder.head(record.run.model, group)
        return head.rounds if head is not None and head.run == record.id else 0

    async def _learn(self, turn: Round) -> LearnResult:
        run, round = turn.record.run, turn.schedule.round
        self.status = f"training round {round} of {run.rounds}"
        archives = []
        for id in run.datasets:
            dataset = DATASETS.get(self._view(), id)
            assert dataset is not None
            await self._reach.fetch(dataset.dataset.blob)
            archives.append(str(self._blobs.path(dataset.dataset.blob)))
        job = LearnJob(
            model=require_model(self._view(), run.model).model,
            run=run,
            run_id=turn.record.id,
            round=round,
            learner=self._key.account,
            beacon=turn.schedule.beacon,
            archives=tuple(archives),
            base=tuple(self._files(run.model, group) for group in sorted(turn.groups)),
            held=bitmap(turn.groups, len(turn.layout.groups)),
            settled=tuple(self._settled(turn)),
            residuals=str(self._residuals / turn.record.id.hex()[:16]),
            device=self._device,
            threads=self._threads,
        )
        began = trio.current_time()
        result: LearnResult = await self._worker.call(
            job, lambda p: self._journal.step(round, p.done, p.total, p.note)
        )
        if not result.finite:
            self._nan_rounds += 1
            if self._nan_rounds >= MAX_NAN_ROUNDS:
                self.pause()
                self.status = (
                    f"stopped: {MAX_NAN_ROUNDS} rounds in a row gave numbers that are not "
                    "finite; lower the run's inner rate, then `blyanctl train start`"
                )
        else:
            self._nan_rounds = 0
        self._journal.trained(
            turn.record.id,
            round,
            result.loss_micro,
            result.tokens,
            trio.current_time() - began,
        )
        return result

    def _files(self, model: bytes, group: int) -> GroupFiles:
        head = self._holder.head(model, group)
        assert head is not None
        return GroupFiles(
            group, tuple(str(self._blobs.path(tile.weights)) for tile in head.tiles)
        )

    def _settled(self, turn: Round) -> list[Settled]:
        """Say of each group whether the update of the last round listed our delta."""
        outcomes = []
        for group in sorted(turn.groups):
            head = self._holder.head(turn.record.run.model, group)
            block = self._block(head.block) if head else None
            if block is not None and isinstance(block.content, TileUpdate):
                update = block.content
                ours = [
                    part
                    for part in update.contributions
                    if part.learner == self._key.account
                ]
                clip = ours[0].clip_ppm if ours else PPM
                outcomes.append(Settled(update.round, group, bool(ours), clip))
        return outcomes

    async def _hand_in(self, turn: Round, result: LearnResult) -> None:
        """Send every group to its primary, then to the next ranks, until it moved."""
        round = turn.schedule.round
        self.status = f"handing in round {round}"
        waiting = {group: 0 for group in turn.groups}  # group -> rank it is sent to
        sent_at: dict[int, float] = {}
        deadline_s = turn.record.run.deadline_ms / 1000
        while waiting:
            due: dict[int, list[int]] = {}
            for group, rank in waiting.items():
                since = trio.current_time() - sent_at.get(group, -1e9)
                if group not in sent_at:
                    due.setdefault(rank, []).append(group)
                elif since > deadline_s or self._lost(turn, group, rank):
                    waiting[group] = rank + 1
                    del sent_at[group]
            for rank, groups in due.items():
                for group, verdict in await self._send(turn, result, groups, rank):
                    if verdict in (Verdict.NOT_PRIMARY, Verdict.REFUSED, None):
                        waiting[group] = rank + 1
                    elif verdict is not Verdict.STALE:
                        sent_at[group] = trio.current_time()
            waiting = {
                group: rank
                for group, rank in waiting.items()
                if self._rounds(turn.record, group) <= round
            }
            if waiting:
                self.status = f"waiting for {len(waiting)} updates of round {round}"
                await trio.sleep(AGAIN_S)

    def _lost(self, turn: Round, group: int, rank: int) -> bool:
        """True when the rank that has our delta is no longer connected."""
        seat = self._seat(turn, group, rank)
        if seat is None or seat.account == self._key.account:
            return False
        peer = self._reach.peer_of(seat.account)
        return peer is None or not self._reach.is_connected(peer)

    def _seat(self, turn: Round, group: int, rank: int) -> Seat | None:
        seats = ranks(turn.schedule, group)
        return seats[rank % len(seats)] if seats else None

    async def _send(
        self, turn: Round, result: LearnResult, groups: list[int], rank: int
    ) -> list[tuple[int, Verdict | None]]:
        """Send one bundle per seat; return each group's verdict, None if unreachable."""
        by_seat: dict[bytes, list[int]] = {}
        for group in groups:
            seat = self._seat(turn, group, rank)
            if seat is not None:
                by_seat.setdefault(seat.account, []).append(group)
        outcomes: list[tuple[int, Verdict | None]] = []

        async def send_to(account: bytes, members: list[int]) -> None:
            bundle = self._bundle(turn, result, sorted(members))
            try:
                receipt = await self._deliver(account, bundle)
            except Unavailable as error:
                logger.info("no primary at %s: %s", account.hex(), error)
                outcomes.extend((group, None) for group in members)
                return
            outcomes.extend((v.group, v.verdict) for v in receipt.verdicts)

        async with trio.open_nursery() as nursery:
            for account, members_ in by_seat.items():
                nursery.start_soon(send_to, account, members_)
        return outcomes

    async def _deliver(self, account: bytes, bundle: Bundle) -> Receipt:
        if account == self._key.account:
            return await self._reach.take(bundle)
        peer = self._reach.peer_of(account)
        if peer is None:
            raise Unavailable("the primary's address is not known")
        receipt = await self._reach.push(peer, bundle)
        elements = sum(
            layout_elements(self._view(), bundle, delta.group)
            for delta in bundle.deltas
        )
        sent = len(encode(bundle)) + PREFIX_BYTES
        self._journal.handed_over(bundle.manifest.round, 4 * elements, sent)
        return receipt

    def _bundle(self, turn: Round, result: LearnResult, groups: list[int]) -> Bundle:
        by_group = {delta.group: delta for delta in result.deltas}
        deltas = []
        for group in groups:
            change = by_group.get(group)
            head = self._holder.head(turn.record.run.model, group)
            if change is None or head is None:
                continue
            base = tuple(tile.weights for tile in head.tiles)
            deltas.append(
                Delta(
                    version=FORMAT_VERSION,
                    run=turn.record.id,
                    group=group,
                    round=turn.schedule.round,
                    learner=self._key.account,
                    base=base,
                    tokens=change.tokens,
                    tiles=change.tiles,
                )
            )
        digests = {delta.group: delta.digest for delta in deltas}
        ours = [by_group[group] for group in groups if group in by_group]
        manifest = Manifest(
            run=turn.record.id,
            round=turn.schedule.round,
            learner=self._key.account,
            entries=tuple(Entry(group, digests.get(group)) for group in groups),
            residual=digest(Domain.RESIDUAL, *(change.residual for change in ours)),
            change=digest(Domain.CHANGE, *(change.change for change in ours)),
        )
        signature = self._key.sign(Purpose.DELTA_BUNDLE, self._network, manifest)
        return Bundle(manifest, self._key.public, signature, tuple(deltas))


def layout_elements(view: View, bundle: Bundle, group: int) -> int:
    """Return how many numbers a group of the bundle's model has."""
    record = RUNS.get(view, bundle.manifest.run)
    assert record is not None
    layout = layout_for(require_model(view, record.run.model).model)
    return layout.groups[group].elements
